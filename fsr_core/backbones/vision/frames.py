"""Frames of a video: checks, conversion to RGB, an even choice of some, and frames as views of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from PIL import Image
from transformers import CLIPImageProcessorPil

from fsr_core.backbones.vision.pixels import from_pictures
from fsr_core.pictures import to_rgb

__all__ = ["evenly", "frame_processor", "frames_to_rgb"]

Frame = TypeVar("Frame")
# Steps of time become positions, which must fit into 32 bits; so the slowest video has one frame in eleven days.
_SLOWEST, _FASTEST = 1e-6, 1e6


def evenly(frames: Sequence[Frame], count: int = 32) -> list[Frame]:
    """`count` frames at even distances, including the first and the last; all frames if there are no more.

    The papers take 32. Raises ValueError for no frames or a count below one.
    """
    if not frames:
        raise ValueError("video: has no frames; send at least one")
    if count < 1:
        raise ValueError(f"count: expected at least one frame, got {count}")
    if len(frames) <= count:
        return list(frames)
    last = len(frames) - 1
    return [frames[round(i * last / max(1, count - 1))] for i in range(count)]


def frames_to_rgb(frames: Sequence[Image.Image], fps: float) -> list[Image.Image]:
    """The frames in RGB. Raises ValueError for no frames, frames of different sizes, or an `fps` out of range."""
    if not frames:
        raise ValueError("video: has no frames; send at least one")
    if not _SLOWEST <= fps <= _FASTEST:  # false of NaN
        raise ValueError(f"video: fps = {fps:g} is not within {_SLOWEST:g}..{_FASTEST:g} frames a second")
    pictures = [to_rgb(frame) for frame in frames]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"video: its frames differ in size ({sorted(sizes)}); scale them alike")
    return pictures


def frame_processor(images: Any, video: Mapping[str, Any], edge: int) -> Any:
    """A processor that scales frames to the tower's square and normalises them, without tiles.

    Its settings are those of the video processor, else those of the image processor `images`.
    """
    names = ("image_mean", "image_std", "resample", "rescale_factor", "do_rescale", "do_normalize")
    settings = {name: video.get(name, getattr(images, name, None)) for name in names}
    size = video.get("size") or {"height": edge, "width": edge}
    known = {name: value for name, value in settings.items() if value is not None}
    return from_pictures(CLIPImageProcessorPil)(size=size, do_center_crop=False, **known)
