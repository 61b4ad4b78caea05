"""Pixels as a checkpoint's own image processor prepares them, and which part of the picture they show.

The library has every image processor twice, on Pillow and on torchvision; they differ in the last bits. The Pillow
one is used by name, so that what an encoder computes does not depend on whether torchvision happens to be there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from PIL import Image

from fsr_core.backbones.checkpoints.checkpoint import read_json
from fsr_core.backbones.features import Box

__all__ = ["image_processor", "square", "to_rgb", "video_settings", "visible"]


def image_processor(folder: Path, default: str) -> Any:
    """The Pillow image processor that a checkpoint names, or `default` (a class name of the library).

    Raises ValueError where the checkpoint has no image processor or names one that the library lacks.
    """
    declared = read_json(folder / "processor_config.json").get("image_processor") or {}
    declared = declared or read_json(folder / "preprocessor_config.json")
    if not declared:
        raise ValueError(f"model: {folder.name} has no preprocessor_config.json; copy it from the original checkpoint")
    name = str(declared.get("image_processor_type") or default).removesuffix("Pil").removesuffix("Fast") + "Pil"
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"model: the image processor {name.removesuffix('Pil')} of {folder.name} is not known")
    try:
        return kind.from_pretrained(folder)
    except (OSError, TypeError) as error:
        raise ValueError(f"model: preprocessor_config.json of {folder.name} is damaged ({error})") from error


def video_settings(folder: Path) -> dict[str, Any]:
    """Settings of a checkpoint's video processor, or none. Raises ValueError for a damaged file.

    As the library has it, they are those of its image processor where the checkpoint has none for videos: so Qwen2.5-VL
    is published.
    """
    told: dict[str, Any] = read_json(folder / "processor_config.json").get("video_processor") or {}
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        told = told or read_json(folder / name)
    return dict(told)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, what is transparent on white, as the library has it. Raises ValueError for no PIL image, or
    one without pixels."""
    if not isinstance(image, Image.Image) or 0 in image.size:
        raise ValueError("image: expected a PIL image with at least one pixel")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _edges(size: Any) -> dict[str, int]:
    """The set fields of a processor's size, which is a dict or an object of the library."""
    fields = dict(size) if isinstance(size, dict) else {k: getattr(size, k, None) for k in ("height", "width")}
    if not isinstance(size, dict):
        fields["shortest_edge"] = getattr(size, "shortest_edge", None)
    return {name: int(value) for name, value in fields.items() if value}


def square(size: tuple[int, int]) -> Box:
    """What a picture shows that is padded to a square, in its own pixels; it stands in the middle."""
    side = max(size)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    return (float(-left), float(-top), float(side - left), float(side - top))


def visible(processor: Any, size: tuple[int, int]) -> Box:
    """What padding, resize and centre crop of a processor leave of a picture, in the picture's own pixels; beyond the
    picture where the processor pads it."""
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
        # The longer side is truncated, as the library does.
        across, down = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    elif edges:
        across, down = edges["width"], edges["height"]
    if not processor.do_center_crop:
        return (0.0, 0.0, float(width), float(height))
    crop = _edges(processor.crop_size)
    left, top = (across - crop["width"]) // 2, (down - crop["height"]) // 2
    x, y = width / across, height / down
    return (left * x, top * y, (left + crop["width"]) * x, (top + crop["height"]) * y)
