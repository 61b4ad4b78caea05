"""From a picture to the tower's input: the library's own steps, with as little work on the CPU as gives the same bits.

The library's Pillow processors turn the whole picture into an array and back before they scale it, and rescale and
normalise every pixel in double and single precision. Here a picture is scaled as it is, and its pixels stay bytes until
they are on the tower's device, where a table says what each byte becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import get_resize_output_image_size
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from fsr_core.backbones.features import Normalisation, PreparedImage

__all__ = ["from_pictures", "prepare", "tower_pixels"]


class _Picture:
    """A picture of which the library sees the shape; it becomes an array ``[3, H, W]`` only where one is needed."""

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, image: Image.Image) -> None:
        self.image, self.shape = image, (3, image.height, image.width)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        pixels = np.moveaxis(np.asarray(self.image), -1, 0)
        return pixels if dtype is None else pixels.astype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        part: np.ndarray = np.asarray(self)[index]
        return part


class _FromPicture(PilBackend):
    """The library's steps for arrays, with pictures scaled as they are."""

    do_resize: bool

    def process_image(self, image: Any, *args: Any, **options: Any) -> Any:
        if self.do_resize and isinstance(image, Image.Image) and image.mode == "RGB":
            return _Picture(image)
        return super().process_image(image, *args, **options)

    def resize(
        self, image: Any, size: Any, resample: Any = None, reducing_gap: int | None = None, **options: Any
    ) -> np.ndarray:
        scaled = _scaled_size(image, size)
        if scaled == image.shape[1:] and image.dtype == np.uint8:  # such as a tile; Pillow would copy it
            return np.asarray(image)
        if scaled is None or not isinstance(image, _Picture):
            return super().resize(np.asarray(image), size, resample, reducing_gap=reducing_gap, **options)
        height, width = scaled
        filtered = Image.Resampling.BILINEAR if resample is None else resample
        return np.moveaxis(np.asarray(image.image.resize((width, height), filtered, reducing_gap=reducing_gap)), -1, 0)


def _scaled_size(image: Any, size: Any) -> tuple[int, int] | None:
    """Height and width that an image ``[3, H, W]`` is scaled to; None if the library's rule is another one."""
    if size.shortest_edge and not size.longest_edge:
        height, width = get_resize_output_image_size(
            image, size=size.shortest_edge, default_to_square=False, input_data_format="channels_first"
        )
        return height, width
    return (size.height, size.width) if size.height and size.width else None


class _BytePatches:
    """Cuts a picture of bytes into patches of bytes. The library makes floats of them first, four times as large."""

    def patchify(
        self, image: Any, patch_size: int, merge_size: int, temporal_patch_size: int
    ) -> tuple[np.ndarray, int, int]:
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:
            whole: tuple[np.ndarray, int, int] = super().patchify(  # type: ignore[misc]
                image, patch_size=patch_size, merge_size=merge_size, temporal_patch_size=temporal_patch_size
            )
            return whole
        channels, height, width = pixels.shape
        rows, columns = height // patch_size, width // patch_size
        # [channel, row of blocks, row in it, y, column of blocks, column in it, x]
        blocks = pixels.reshape(
            channels, rows // merge_size, merge_size, patch_size, columns // merge_size, merge_size, patch_size
        )
        patches = blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, channels, 1, patch_size**2)
        frames = np.broadcast_to(patches, (rows * columns, channels, temporal_patch_size, patch_size**2))
        return frames.reshape(rows * columns, -1), rows, columns


# Processors of the library that scale a picture before they do anything else with its pixels.
_SCALE_FIRST = (
    CLIPImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)
# Those that rescale and normalise last, and pixel by pixel.
_NORMALISE_LAST = (*_SCALE_FIRST, GotOcr2ImageProcessorPil)


def from_pictures(kind: Any) -> Any:
    """A Pillow processor class of the library, such that it scales pictures as they are; it gives the same pixels."""
    if kind not in _SCALE_FIRST:
        return kind
    cuts = (_BytePatches,) if kind is Qwen2VLImageProcessorPil else ()
    return type(kind.__name__, (*cuts, kind, _FromPicture), {"__module__": kind.__module__})


def prepare(processor: Any, images: Any, **options: Any) -> tuple[Any, Normalisation | None]:
    """What a processor returns for RGB pictures, but `pixel_values` as bytes, and what the tower's device then does.

    Other processors than those known here do it themselves.
    """
    if not isinstance(processor, _NORMALISE_LAST):
        return processor(images=images, return_tensors="pt", **options), None
    out = processor(images=images, do_rescale=False, do_normalize=False, return_tensors="pt", **options)
    out["pixel_values"] = out["pixel_values"].to(torch.uint8)  # some make numbers of them that are whole
    return out, Normalisation.of(processor)


def tower_pixels(images: Sequence[PreparedImage], device: torch.device) -> Tensor:
    """The pixels of all images, one after the other, on the tower's device and normalised."""
    pixels = [image.inputs["pixel_values"] for image in images]
    pixels = [views.unsqueeze(0) if views.dim() == 3 else views for views in pixels]
    ways = [(image.normalisation, image.equal_frames) for image in images]
    if all(way == ways[0] for way in ways):  # as usual; then it is one copy to the device
        pixels, ways = [_joined(pixels)], ways[:1]
    moved = [part.to(device) for part in pixels]
    return _joined([_floats(part, *way) for part, way in zip(moved, ways, strict=True)])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _floats(pixels: Tensor, way: Normalisation | None, frames: int) -> Tensor:
    if way is not None:
        return way(pixels, frames)
    if frames == 1:
        return pixels
    return pixels.view(len(pixels), 3, 1, -1).expand(-1, -1, frames, -1).reshape(len(pixels), -1)
