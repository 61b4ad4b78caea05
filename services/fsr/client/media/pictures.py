"""Pictures as paths, URLs, bytes, open files, PIL images and arrays."""

from __future__ import annotations

import inspect
import mimetypes
import os
import re
from math import inf
from pathlib import Path
from typing import Any, Protocol

from fsr.client.errors import InvalidRequestError
from fsr.client.media.arrays import is_array, is_pil_image, png_of_array, png_of_pil_image
from fsr.client.media.urls import fetched, file_of_data_uri

__all__ = ["PathLike", "PictureSource", "ReadsBytes", "is_one_source", "is_video_file", "local_path", "read_picture"]

PathLike = str | os.PathLike[str]
_SCHEME = re.compile(r"(data):|([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_LONGEST = 200  # characters of a path in a message


class ReadsBytes(Protocol):
    """A binary file that is open."""

    def read(self) -> bytes: ...


class PilImage(Protocol):
    """An image of Pillow."""

    @property
    def mode(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def getextrema(self) -> Any: ...


class Array(Protocol):
    """An array of NumPy, or what NumPy can make one of."""

    def __array__(self) -> Any: ...


#: A picture: the path of a JPEG, PNG or WebP file, its http(s) URL or data URI; its bytes; the open file; a PIL image;
#: or an array [H, W] or [H, W, 1..4] of uint8, of uint16, or of floats in 0..1.
PictureSource = PathLike | bytes | bytearray | memoryview | ReadsBytes | PilImage | Array


def read_picture(source: PictureSource, field: str = "image", deadline: float = inf) -> bytes:
    """The picture as a file. Images and arrays become PNG files, with the same pixels.

    Args:
        source: see `PictureSource`. An open file is read from where it stands.
        field: its name in errors.
        deadline: moment of `time.monotonic()` until which a URL may be fetched.

    Raises:
        InvalidRequestError: it cannot be read, and why.
        DeadlineExceeded: the deadline has passed.
    """
    file = _file(source, field, deadline)
    if not file:
        raise InvalidRequestError(f"{field}: is empty; give a JPEG, PNG or WebP file")
    return file


def is_one_source(source: Any) -> bool:
    """Whether it is a picture by itself, and no list of pictures."""
    plain = isinstance(source, str | bytes | bytearray | memoryview | os.PathLike)
    return plain or is_pil_image(source) or hasattr(source, "read") or is_array(source)


def local_path(source: Any) -> Path | None:
    """The path that a source stands for; None if it is no path."""
    if not isinstance(source, str | os.PathLike) or (isinstance(source, str) and _SCHEME.match(source)):
        return None
    return Path(os.fsdecode(source))


def is_video_file(path: Path) -> bool:
    """By its name."""
    return (mimetypes.guess_type(path.name)[0] or "").startswith("video/")


def _file(source: Any, field: str, deadline: float) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if (path := local_path(source)) is not None:
        return _content(path, field)
    if isinstance(source, str):
        return _file_at(source, field, deadline)
    if is_pil_image(source):
        return png_of_pil_image(source, field)
    if hasattr(source, "read"):
        return _content_of_open_file(source, field)
    if is_array(source):
        return png_of_array(source, field)
    ways = "give a path, a URL, a file's bytes, an open file, a PIL image or a NumPy array"
    raise InvalidRequestError(f"{field}: {type(source).__name__} is not a picture; {ways}")


def _file_at(address: str, field: str, deadline: float) -> bytes:
    match = _SCHEME.match(address)
    scheme = match[0].lower() if match else ""
    if scheme == "data:":
        return file_of_data_uri(address, field)
    if scheme in ("https://", "http://"):
        return fetched(address, field, deadline)
    raise InvalidRequestError(f"{field}: URLs of {scheme} are not read; give a path, an https URL or the file's bytes")


def _content(path: Path, field: str) -> bytes:
    shown = str(path)[:_LONGEST]
    if is_video_file(path):
        raise InvalidRequestError(f"{field}: {shown} is a video file; Video.from_file reads it")
    try:
        if path.is_dir():
            raise InvalidRequestError(f"{field}: {shown} is a folder; Video.from_folder reads the frames of a video")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequestError(f"{field}: cannot read {shown} ({reason}); check the path") from error


def _content_of_open_file(source: Any, field: str) -> bytes:
    try:
        content = source.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or its text is in another encoding
        reason = "open it for reading as bytes: open(path, 'rb')"
        raise InvalidRequestError(f"{field}: the open file cannot be read ({error}); {reason}") from error
    if inspect.iscoroutine(content):
        content.close()
        raise InvalidRequestError(f"{field}: {type(source).__name__} is read with await; pass what read() gives")
    if isinstance(content, str):
        raise InvalidRequestError(f"{field}: the file is open as text; open it as bytes: open(path, 'rb')")
    if not isinstance(content, bytes | bytearray | memoryview):
        raise InvalidRequestError(f"{field}: read() gives {type(content).__name__}; it must give bytes")
    if not content:
        raise InvalidRequestError(f"{field}: the open file is at its end; call seek(0) on it")
    return bytes(content)
