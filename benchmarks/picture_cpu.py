"""CPU time from a JPEG file to a tower's input: the library's own processors, and ours, which gives the same bits.

    python -m benchmarks.picture_cpu [--rounds 30] [--size 1280x960]

Variants take turns within a round; CPU time of one thread, lower quartiles over all rounds but the first two. Before
and now are the sums with decoding. Decoding and scaling are Pillow's work, which the same pixels take in any case. The
file is a smooth picture with some noise, of the size of a photo. "Normalise" is done on the tower's device; here it is
the CPU too.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from PIL import Image

from fsr_core.backbones.features import PreparedImage
from fsr_core.backbones.vision.pixels import from_pictures, prepare, tower_pixels
from fsr_core.pictures import read_picture

CPU = torch.device("cpu")
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaVA-1.5, 336 px": (
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "LLaVA-NeXT, 2 x 2 tiles of 336 px": (
        "LlavaNextImageProcessorPil",
        {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": [[672, 672]],
        },
    ),
    "Qwen2-VL, own size": ("Qwen2VLImageProcessorPil", {}),
}


def jpeg(size: tuple[int, int]) -> bytes:
    """A file of a picture with large shapes and fine noise."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(shapes) + rng.normal(0, 6, (size[1], size[0], 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def quartiles(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Lower quartile of the milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 2):
        for name, run in runs.items():
            began = time.thread_time()
            run()
            taken[name].append(1000 * (time.thread_time() - began))
    return {name: sorted(times[2:])[rounds // 4] for name, times in taken.items()}


def scalings(work: Callable[[], object]) -> list[Callable[[], object]]:
    """The calls of Pillow's `resize` that some work makes."""
    calls: list[Callable[[], object]] = []
    resize = Image.Image.resize

    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(lambda: resize(*arguments, **options))
        return resize(*arguments, **options)

    with mock.patch.object(Image.Image, "resize", noted):
        work()
    return calls


def prepared(processor: Any, picture: Image.Image) -> PreparedImage:
    """As the encoders of these families do it."""
    patches = isinstance(processor, transformers.Qwen2VLImageProcessorPil)
    out, normalisation = prepare(processor, picture, **({"temporal_patch_size": 1} if patches else {}))
    return PreparedImage(
        inputs={"pixel_values": out["pixel_values"] if patches else out["pixel_values"][0]},
        tiles=(),
        size=picture.size,
        normalisation=normalisation,
        equal_frames=processor.temporal_patch_size if patches else 1,
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT; write 1280x960")
    return int(width), int(height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="that count, at least 1")
    parser.add_argument("--size", type=_size, default=(1280, 960), metavar="WIDTHxHEIGHT", help="of the JPEG file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: give at least 1")
    torch.set_num_threads(1)
    data = jpeg(options.size)
    picture = read_picture(data)
    print("JPEG of {}x{}, {} kB\n".format(*options.size, len(data) // 1000))
    print(
        "| processor | decode, ms | library, ms | ours, ms | of it scale | of it normalise |"
        " before, ms | now, ms | before / now |"
    )
    print("| --- |" + " --: |" * 8)
    for name, (kind, settings) in PROCESSORS.items():
        library = getattr(transformers, kind)(**settings)
        ours = from_pictures(getattr(transformers, kind))(**settings)
        image = prepared(ours, picture)
        scale = scalings(lambda ours=ours: prepared(ours, picture))
        theirs = library(images=picture, return_tensors="pt")["pixel_values"]
        if not torch.equal(tower_pixels([image], CPU).flatten(), theirs.flatten()):
            raise SystemExit(f"{name}: the pixels differ from the library's; one of them is wrong")
        ms = quartiles(
            {
                "decode": lambda: read_picture(data),
                "library": lambda library=library: library(images=picture, return_tensors="pt"),
                "prepare": lambda ours=ours: prepared(ours, picture),
                "scale": lambda scale=scale: [call() for call in scale],
                "normalise": lambda image=image: tower_pixels([image], CPU),
            },
            options.rounds,
        )
        own = ms["prepare"] + ms["normalise"]
        before, after = ms["decode"] + ms["library"], ms["decode"] + own
        figures = (ms["decode"], ms["library"], own, ms["scale"], ms["normalise"], before, after)
        cells = [f"{value:.1f}" for value in figures] + [f"{before / after:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
