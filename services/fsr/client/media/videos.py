"""Reads pictures and videos. Their files are sent as they are, never re-encoded."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from fsr.client.errors import InvalidRequestError
from fsr.v1 import types_pb2

__all__ = ["ImageSource", "PictureSource", "Video", "image_messages", "read_picture"]

#: A JPEG, PNG or WebP file: its path, or its bytes.
PictureSource = str | os.PathLike[str] | bytes
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Video:
    """A video as its frames in order, all of one size. Every frame is used.

    Raises InvalidRequestError if there are no frames, or if `frames_per_second` is not above 0.
    """

    frames: Sequence[PictureSource]
    frames_per_second: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.frames, str | bytes) or not isinstance(self.frames, Sequence):
            raise InvalidRequestError("frames: expected a list of frames; Video.from_folder reads those of a folder")
        if not self.frames:
            raise InvalidRequestError("frames: is empty; send at least one")
        if not (isfinite(self.frames_per_second) and self.frames_per_second > 0):
            raise InvalidRequestError(f"frames_per_second: {self.frames_per_second} is not above 0; try 2")

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], frames_per_second: float = 2.0) -> Video:
        """The JPEG, PNG and WebP files of a folder, sorted by name with numbers by value: `f9.png`, then `f10.png`."""
        try:
            files = sorted((p for p in Path(folder).iterdir() if p.suffix.lower() in _SUFFIXES), key=_by_number)
        except OSError as error:
            raise InvalidRequestError(f"video: cannot read {folder} ({error.strerror}); check the path") from error
        if not files:
            raise InvalidRequestError(f"video: {folder} holds no frames; put JPEG, PNG or WebP files there")
        return cls(files, frames_per_second)


ImageSource = PictureSource | Video


def image_messages(images: ImageSource | Sequence[ImageSource]) -> list[types_pb2.Image]:
    """One message for each picture or video. Raises InvalidRequestError naming a file that cannot be read."""
    if isinstance(images, str | bytes | os.PathLike | Video) or not isinstance(images, Iterable):
        images = [images]
    return [_message(source) for source in images]


def _message(source: ImageSource) -> types_pb2.Image:
    if not isinstance(source, Video):
        return types_pb2.Image(data=read_picture(source))
    frames = [read_picture(frame, f"frames[{i}]") for i, frame in enumerate(source.frames)]
    return types_pb2.Image(frames=frames, frames_per_second=source.frames_per_second)


def read_picture(source: PictureSource, field: str = "image") -> bytes:
    """The file's bytes. Raises InvalidRequestError naming `field`."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | os.PathLike):
        raise InvalidRequestError(f"{field}: {type(source).__name__} is not a picture; give a path or a file's bytes")
    path = Path(source)
    if (mimetypes.guess_type(path.name)[0] or "").startswith("video/"):
        remedy = f"mkdir frames && ffmpeg -i {path} -vf fps=2 frames/%05d.png"
        raise InvalidRequestError(f"{field}: {path} is a video file; send a folder of its frames: {remedy}")
    if path.is_dir():
        raise InvalidRequestError(f"{field}: {path} is a folder; Video.from_folder reads the frames of a video")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{field}: cannot read {path} ({error.strerror}); check the path") from error


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = [part for part in re.split(r"(\d+)", path.name) if part]
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name
