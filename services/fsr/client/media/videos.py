"""Videos, and the list of pictures and videos of a request."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf, isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from fsr.client.errors import InvalidRequestError
from fsr.client.media.arrays import is_array
from fsr.client.media.pictures import (
    PathLike,
    PictureSource,
    ReadsBytes,
    is_one_source,
    is_video_file,
    local_path,
    read_picture,
)
from fsr.client.media.video_files import frames_of
from fsr.v1 import types_pb2

__all__ = ["ImageSource", "Images", "Video", "image_messages", "is_content"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEFAULT_RATE = 2.0  # frames per second


@dataclass(frozen=True)
class Video:
    """A video as its frames in order, all of one size. Every frame is used. An array [T, H, W, C] is T frames.

    Raises InvalidRequestError if there are no frames, or if `frames_per_second` is not above 0.
    """

    frames: Sequence[PictureSource]
    frames_per_second: float = DEFAULT_RATE

    def __post_init__(self) -> None:
        frames: Any = self.frames
        if is_array(frames) and getattr(frames, "ndim", 0) in (3, 4):
            object.__setattr__(self, "frames", frames := list(frames))
        if isinstance(frames, str | bytes | bytearray) or not isinstance(frames, Sequence):
            ways = "Video.from_file and Video.from_folder read those of a file and of a folder"
            raise InvalidRequestError(f"frames: expected a list of frames; {ways}")
        if not frames:
            raise InvalidRequestError("frames: is empty; send at least one")
        _check_rate(self.frames_per_second)

    @classmethod
    def from_file(cls, file: PathLike | bytes | ReadsBytes, frames_per_second: float = DEFAULT_RATE) -> Video:
        """The frames of a video file (MP4, WebM and whatever else FFmpeg reads), so many for each second of it.

        `file` is its path, its content, or the open file. It needs `pip install 'fsr-gateway[video]'`. Raises
        InvalidRequestError if the file cannot be read.
        """
        _check_rate(frames_per_second)
        if isinstance(file, bytes | bytearray | memoryview):
            return cls(frames_of(BytesIO(file), "the content", frames_per_second), frames_per_second)
        if hasattr(file, "read"):
            return cls(frames_of(file, "the open file", frames_per_second), frames_per_second)
        if not isinstance(file, str | os.PathLike):
            name = type(file).__name__
            raise InvalidRequestError(f"video: {name} is no file; give a path, the file's bytes, or an open file")
        try:
            with open(file, "rb") as opened:
                return cls(frames_of(opened, os.fsdecode(file), frames_per_second), frames_per_second)
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequestError(f"video: cannot read {file} ({reason}); check the path") from error

    @classmethod
    def from_folder(cls, folder: PathLike, frames_per_second: float = DEFAULT_RATE) -> Video:
        """The JPEG, PNG and WebP files of a folder, sorted by name with numbers by value: `f9.png`, then `f10.png`."""
        try:
            files = sorted((p for p in Path(folder).iterdir() if p.suffix.lower() in _SUFFIXES), key=_by_number)
        except OSError as error:
            raise InvalidRequestError(f"video: cannot read {folder} ({error.strerror}); check the path") from error
        if not files:
            raise InvalidRequestError(f"video: {folder} holds no frames; put JPEG, PNG or WebP files there")
        return cls(files, frames_per_second)


#: A picture, or a video. The path of a video file, or of a folder with frames, is a video of 2 frames per second.
ImageSource = PictureSource | Video
#: The pictures and videos of a request: one, or a list of them.
Images = ImageSource | Sequence[ImageSource]


def image_messages(images: Images, field: str = "images", deadline: float = inf) -> list[types_pb2.Image]:
    """One message for each picture or video.

    Args:
        images: one or several.
        field: its name in errors, with the number of a picture if there are several.
        deadline: moment of `time.monotonic()` until which URLs may be fetched.

    Raises:
        InvalidRequestError: one cannot be read; the message names it.
        DeadlineExceeded: the deadline has passed.
    """
    several = isinstance(images, Iterable) and not is_one_source(images)
    sources: list[Any] = list(images) if several else [images]  # type: ignore[arg-type]
    if len(sources) == 1:
        return [_message(sources[0], field.removesuffix("s"), deadline)]
    return [_message(source, f"{field}[{i}]", deadline) for i, source in enumerate(sources)]


def is_content(images: Images) -> bool:
    """Whether they are the contents of files already, so that nothing is read, encoded or fetched."""
    return all(isinstance(image, bytes) for image in (images if isinstance(images, list | tuple) else (images,)))


def _message(source: ImageSource, field: str, deadline: float) -> types_pb2.Image:
    if isinstance(source, Video):
        video = source
    elif (path := local_path(source)) is not None and is_video_file(path):
        video = Video.from_file(path)
    elif path is not None and _is_folder(path):
        video = Video.from_folder(path)
    else:
        return types_pb2.Image(data=read_picture(source, field, deadline))
    prefix = "" if field == "image" else f"{field}."
    frames = [read_picture(frame, f"{prefix}frames[{i}]", deadline) for i, frame in enumerate(video.frames)]
    return types_pb2.Image(frames=frames, frames_per_second=float(video.frames_per_second))


def _check_rate(rate: Any) -> None:
    if isinstance(rate, bool) or not isinstance(rate, Real) or not (isfinite(rate) and float(rate) > 0):
        raise InvalidRequestError(f"frames_per_second: {rate} is not above 0; try 2")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long, or with a zero byte; whoever reads it says so
        return False


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = [part for part in re.split(r"(\d+)", path.name) if part]
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name
