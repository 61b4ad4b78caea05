"""New pictures for load tests: repeated ones measure caches."""

from __future__ import annotations

import random
from functools import lru_cache
from io import BytesIO
from typing import Any

from fsr.client.errors import InvalidRequestError

__all__ = ["vary"]

_SIDE = 8  # a patch of coloured squares, so many a side, takes an eighth of the picture's width and height
_random = random.SystemRandom()


def vary(picture: bytes) -> bytes:
    """The picture with a patch of random colours at a random place, as a JPEG file.

    Raises:
        InvalidRequestError: Pillow is not installed, or the picture cannot be read.
    """
    image = _decoded(picture).copy()
    size = max(1, image.width // _SIDE), max(1, image.height // _SIDE)
    colours = _pillow().frombytes("RGB", (_SIDE, _SIDE), _random.randbytes(3 * _SIDE**2))
    place = _random.randrange(image.width - size[0] + 1), _random.randrange(image.height - size[1] + 1)
    image.paste(colours.resize(size, 0), place)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise InvalidRequestError("--fresh: needs Pillow; pip install 'fsr-gateway[core]'") from error
    return Image


@lru_cache(maxsize=64)
def _decoded(picture: bytes) -> Any:
    _pillow()  # says what is missing
    from fsr_core.pictures import read_picture  # reads files as the encoder does

    try:
        return read_picture(picture)
    except ValueError as error:
        raise InvalidRequestError(f"--fresh: a picture cannot be read ({error})") from error
