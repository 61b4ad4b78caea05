"""Image files to pixels. Each file's header is checked before any pixel is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import zip_longest

from PIL import Image

from fsr.common.errors import InvalidRequest, ServiceError
from fsr.encoder.images.picture_cost import check_cost
from fsr.v1 import types_pb2
from fsr_core.pictures import PictureFile

__all__ = ["Sizes", "check_pixels", "decode_image"]

Sizes = list[tuple[int, int]]

# Preprocessing scales the shorter side up to the tower's edge, so a longer picture would become enormous.
# Qwen-VL has the same limit.
_MAX_ASPECT_RATIO = 200


def check_pixels(
    images: Sequence[types_pb2.Image],
    max_pixels: int,
    max_total: int,
    known: Sequence[Sizes | None] = (),
) -> list[Sizes]:
    """Checks the headers of all pictures and frames of a request. Decodes nothing.

    `known` is what an earlier check returned, for each image that has passed one; its headers are not read again.

    Returns, for each image, width and height of the picture or of each of its frames.

    Raises InvalidRequest, naming the field, if a header is wrong (see `decode_image`), if an image has both data and
    frames, or if all pixels together exceed `max_total`.
    """
    sizes = []
    for i, (image, passed) in enumerate(zip_longest(images, known)):
        if image.data and image.frames:
            raise InvalidRequest(f"images[{i}]: has both data and frames; send a picture or a video")
        if passed is not None:
            sizes.append(passed)
            continue
        files = [(f"images[{i}].frames[{j}]", frame) for j, frame in enumerate(image.frames)]
        files = files or [(f"images[{i}].data", image.data)]
        sizes.append([_open(file, field, max_pixels).size for field, file in files])
    pixels = sum(width * height for one in sizes for width, height in one)
    if pixels > max_total:
        raise InvalidRequest(f"images: {pixels} pixels together exceed {max_total}; scale them down or send fewer")
    return sizes


def decode_image(
    data: bytes,
    field: str,
    max_pixels: int,
    check_time: Callable[[str], None] = lambda field: None,
    jpeg_side: int | None = None,
) -> tuple[Image.Image, tuple[int, int]]:
    """The RGB picture of a file, as transformers loads it: turned as its EXIF tag says, transparent pixels on white.
    And its width and height in the file, once it is turned.

    With `jpeg_side`, a JPEG is decoded at a smaller size whose shorter side has at least so many pixels.
    `check_time` is called with `field` again and again; decoding ends with what it raises.

    Raises InvalidRequest, naming `field`, if the file is empty, of another format, animated or damaged, if it has more
    than `max_pixels` pixels or too long a shape, or if it costs more than these tell (see `picture_cost`). Damaged
    metadata are no reason to refuse it.
    """
    file = _open(data, field, max_pixels, lambda: check_time(field))
    try:
        return file.decode(jpeg_side), file.upright_size
    except ServiceError:
        raise
    except Exception as error:
        raise InvalidRequest(f"{field}: is truncated or damaged; upload it again") from error


def _open(data: bytes, field: str, max_pixels: int, check_time: Callable[[], None] = lambda: None) -> PictureFile:
    """The picture with its header read and checked, and no pixel decoded."""
    if not data:
        raise InvalidRequest(f"{field}: is empty; send a JPEG, PNG or WebP file")
    try:
        check_cost(data)
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}") from error
    try:
        file = PictureFile(data, lambda content: _TimedFile(content, check_time))
    except ServiceError:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{field}: has far more than {max_pixels} pixels; scale it down") from error
    except Exception as error:  # Pillow raises many kinds of errors for hostile headers
        raise InvalidRequest(f"{field}: is no readable JPEG, PNG or WebP file; check the upload") from error
    if file.frames > 1:
        raise InvalidRequest(f"{field}: is animated; send one frame")
    width, height = file.size
    size = f"{width} x {height}"
    if width * height > max_pixels:
        raise InvalidRequest(f"{field}: {size} is more than {max_pixels} pixels; scale it down")
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
        raise InvalidRequest(f"{field}: {size} is more than {_MAX_ASPECT_RATIO} times as long as wide; cut it")
    return file


class _TimedFile(io.BytesIO):
    """A file whose decoder is stopped where it reads on. Decoders of JPEG and PNG read 64 KiB at a time."""

    def __init__(self, content: bytes, check_time: Callable[[], None]) -> None:
        super().__init__(content)
        self._check_time = check_time

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_time()
        return super().read(size)
