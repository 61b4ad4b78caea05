"""A checkpoint's own image processor, and which part of a picture it leaves.

The library has every image processor twice, on Pillow and on torchvision; they differ in the last bits. This module
always takes the Pillow one, so an encoder computes the same with and without torchvision.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import transformers

from fsr_core.backbones.checkpoints.checkpoint import read_json
from fsr_core.backbones.features import Box
from fsr_core.backbones.vision.pixels import from_pictures

__all__ = ["image_processor", "square", "sufficient_side", "video_settings", "visible"]


def image_processor(folder: Path, default: str) -> Any:
    """The Pillow image processor that a checkpoint names, else `default` (a class name of the library).

    Raises ValueError if the checkpoint has no image processor or names one that the library lacks.
    """
    declared = read_json(folder / "processor_config.json").get("image_processor") or {}
    declared = declared or read_json(folder / "preprocessor_config.json")
    if not declared:
        raise ValueError(f"model: {folder.name} has no preprocessor_config.json; copy it from the original checkpoint")
    name = str(declared.get("image_processor_type") or default).removesuffix("Pil").removesuffix("Fast") + "Pil"
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"model: the image processor {name.removesuffix('Pil')} of {folder.name} is not known")
    # From the class's own module: transformers 5.16 asks for torchvision if some of them are taken from the package.
    kind = getattr(import_module(kind.__module__), name)
    try:
        return from_pictures(kind).from_pretrained(folder)
    except (OSError, TypeError) as error:
        raise ValueError(f"model: preprocessor_config.json of {folder.name} is damaged ({error})") from error


def video_settings(folder: Path) -> dict[str, Any]:
    """Settings of a checkpoint's video processor; empty if there are none. Raises ValueError for a damaged file.

    If the checkpoint has no settings for videos, the settings of its image processor count, as in the library.
    Qwen2.5-VL is published that way.
    """
    settings: dict[str, Any] = read_json(folder / "processor_config.json").get("video_processor") or {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        settings = settings or read_json(folder / name)
    return dict(settings)


def _edges(size: Any) -> dict[str, int]:
    """The fields of a processor's size that are set; the size is a dict or an object of the library."""
    fields = dict(size) if isinstance(size, dict) else {k: getattr(size, k, None) for k in ("height", "width")}
    if not isinstance(size, dict):
        fields["shortest_edge"] = getattr(size, "shortest_edge", None)
    return {name: int(value) for name, value in fields.items() if value}


def sufficient_side(processor: Any) -> int | None:
    """See `VisualEncoder.sufficient_side`; of a processor that scales pictures to one size, or to one of some grids."""
    if not processor.do_resize:
        return None
    grids = getattr(processor, "image_grid_pinpoints", None) or []
    return max([*_edges(processor.size).values(), *(edge for grid in grids for edge in grid)], default=None)


def square(size: tuple[int, int]) -> Box:
    """The region that a picture shows once it is padded to a square around its middle, in the picture's own pixels."""
    side = max(size)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    return (float(-left), float(-top), float(side - left), float(side - top))


def visible(processor: Any, size: tuple[int, int]) -> Box:
    """The region that padding, resize and centre crop of a processor leave of a picture, in the picture's own pixels.

    It reaches beyond the picture if the processor pads.
    """
    width, height = size
    if not (hasattr(processor, "pad_to_square") and processor.do_pad):
        return _cropped(processor, width, height)
    left, top, _, _ = square(size)
    box = _cropped(processor, max(size), max(size))
    return (box[0] + left, box[1] + top, box[2] + left, box[3] + top)


def _cropped(processor: Any, width: int, height: int) -> Box:
    across, down = width, height
    edges = _edges(processor.size) if processor.do_resize else {}
    if "shortest_edge" in edges:
        short = edges["shortest_edge"]
        # The longer side is truncated, as in the library.
        across, down = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    elif edges:
        across, down = edges["width"], edges["height"]
    if not processor.do_center_crop:
        return (0.0, 0.0, float(width), float(height))
    crop = _edges(processor.crop_size)
    left, top = (across - crop["width"]) // 2, (down - crop["height"]) // 2
    x, y = width / across, height / down
    return (left * x, top * y, (left + crop["width"]) * x, (top + crop["height"]) * y)
