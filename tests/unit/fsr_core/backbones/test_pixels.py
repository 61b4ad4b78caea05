"""Pixels that stay bytes until they are on the tower's device, against the library's own processors, bit for bit."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fsr_core.backbones.features import Normalisation, PreparedImage
from fsr_core.backbones.vision.pixels import from_pictures, prepare, tower_pixels

SIZES = [(640, 480), (97, 201), (336, 336), (20, 500), (1, 1)]
ODD = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def picture(size):
    noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


PROCESSORS = {
    "CLIP": ("CLIPImageProcessorPil", ODD),
    "CLIP, stretched": ("CLIPImageProcessorPil", ODD | {"size": {"height": 90, "width": 70}, "do_center_crop": False}),
    "CLIP, not normalised": ("CLIPImageProcessorPil", {"do_normalize": False}),
    "CLIP, bytes": ("CLIPImageProcessorPil", ODD | {"do_rescale": False}),
    "CLIP, one mean": ("CLIPImageProcessorPil", {"image_mean": 0.5, "image_std": 0.25}),
    "CLIP, not scaled": ("CLIPImageProcessorPil", {"do_resize": False, "do_center_crop": False}),
    "LLaVA, padded": ("LlavaImageProcessorPil", ODD | {"do_pad": True}),
    "LLaVA-NeXT": ("LlavaNextImageProcessorPil", {"image_grid_pinpoints": [[224, 448], [448, 224], [448, 448]]}),
    "SigLIP": ("SiglipImageProcessorPil", {"size": {"height": 384, "width": 384}}),
    "InternVL": ("GotOcr2ImageProcessorPil", {"crop_to_patches": True}),
    "Qwen2-VL": ("Qwen2VLImageProcessorPil", {}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_library(name, size):
    if name == "Qwen2-VL" and size == (1, 1):
        size = (56, 30)
    kind, options = PROCESSORS[name]
    kind = getattr(transformers, kind)
    one = picture(size)
    theirs = kind(**options)(images=one, return_tensors="pt")["pixel_values"]
    out, normalisation = prepare(from_pictures(kind)(**options), one)
    theirs, pixels = (x.flatten(0, -4) if x.dim() > 4 else x for x in (theirs, out["pixel_values"]))
    assert pixels.dtype == torch.uint8
    ours = PreparedImage(inputs={"pixel_values": pixels}, tiles=(), size=size, normalisation=normalisation)
    assert torch.equal(tower_pixels([ours, ours], torch.device("cpu")), torch.cat([theirs.float()] * 2))


@pytest.mark.parametrize("normalise", [True, False])
def test_equal_frames_of_patches_are_made_where_the_tower_is(normalise):
    """As the library gives them, which puts each of them into memory twice."""
    kind, one = transformers.Qwen2VLImageProcessorPil, picture((60, 90))
    options = {"do_rescale": normalise, "do_normalize": normalise}
    theirs = kind(**options)(images=one, return_tensors="pt")["pixel_values"]
    out, way = prepare(from_pictures(kind)(**options), one, temporal_patch_size=1)
    bytes_, cpu = out["pixel_values"], torch.device("cpu")
    assert 2 * bytes_.numel() == theirs.numel()
    for pixels, normalisation in ((bytes_, way), (way(bytes_), None)):
        ours = PreparedImage(
            inputs={"pixel_values": pixels}, tiles=(), size=one.size, normalisation=normalisation, equal_frames=2
        )
        assert torch.equal(tower_pixels([ours, ours], cpu), torch.cat([theirs.float()] * 2))


def test_picture_is_scaled_without_an_array_of_all_its_pixels(monkeypatch):
    seen, asarray = [], np.asarray
    monkeypatch.setattr(np, "asarray", lambda value, *a, **k: seen.append(getattr(value, "size", 0)) or asarray(value))
    prepare(from_pictures(transformers.CLIPImageProcessorPil)(), picture((640, 480)))
    assert seen and (640, 480) not in seen


def test_tiles_are_not_scaled_to_the_size_that_they_have(monkeypatch):
    scaled, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, *a, **k: scaled.append(image.size) or resize(image, *a, **k)
    )
    kind, options = PROCESSORS["LLaVA-NeXT"]
    out, _ = prepare(from_pictures(getattr(transformers, kind))(**options), picture((640, 480)))
    assert out["pixel_values"].shape[1] == 5 and scaled == [(640, 480)] * 2


def test_patches_of_a_picture_and_of_a_video_share_a_batch():
    way, pixels = Normalisation(1 / 255, (0.5,) * 3, (0.25,) * 3), torch.arange(48, dtype=torch.uint8).view(2, 24)
    picture, video = (
        PreparedImage(inputs={"pixel_values": part}, tiles=(), size=(2, 2), normalisation=way, equal_frames=frames)
        for part, frames in ((pixels[:, :12], 2), (pixels, 1))
    )
    together = tower_pixels([picture, video], torch.device("cpu"))
    assert torch.equal(together, torch.cat([tower_pixels([one], torch.device("cpu")) for one in (picture, video)]))


def test_images_of_different_normalisation_share_a_batch():
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    ways = [Normalisation(1 / 255, (0.5,) * 3, (0.25,) * 3), Normalisation(None, (), ()), None]
    images = [PreparedImage(inputs={"pixel_values": pixels}, tiles=(), size=(4, 4), normalisation=way) for way in ways]
    images[2] = PreparedImage(inputs={"pixel_values": pixels.float() / 2}, tiles=(), size=(4, 4))
    together = tower_pixels(images, torch.device("cpu"))
    alone = [tower_pixels([image], torch.device("cpu")) for image in images]
    assert torch.equal(together, torch.cat(alone)) and together.dtype == torch.float32
