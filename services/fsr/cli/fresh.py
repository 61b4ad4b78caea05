"""New pictures and questions for load tests: repeated ones measure caches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

from fsr.client.errors import InvalidRequestError

__all__ = ["Fresh"]

_SIDE = 8  # a patch of coloured squares, so many a side, takes an eighth of the picture's width and height
_KINDS = ("small", "large", "round", "tall", "flat", "shiny", "old", "broken")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "brown", "white", "black", "grey", "pink", "golden")
_THINGS = ("bird", "car", "chair", "cup", "flower", "house", "kite", "lamp", "ship", "sign", "star", "table", "tree")


@dataclass(frozen=True)
class Fresh:
    """Changes the picture and the question of each request. Equal seeds and numbers of requests change them equally."""

    seed: str

    def picture(self, picture: bytes, number: int) -> bytes:
        """The picture with a patch of random colours at a random place, as a JPEG file.

        Raises:
            InvalidRequestError: Pillow is not installed, or the picture cannot be read.
        """
        draw = random.Random(f"{self.seed} picture {number}")
        image = _decoded(picture).copy()
        size = max(1, image.width // _SIDE), max(1, image.height // _SIDE)
        colours = _pillow().frombytes("RGB", (_SIDE, _SIDE), draw.randbytes(3 * _SIDE**2))
        place = draw.randrange(image.width - size[0] + 1), draw.randrange(image.height - size[1] + 1)
        image.paste(colours.resize(size, 0), place)
        file = BytesIO()
        image.save(file, "JPEG", quality=90)
        return file.getvalue()

    def question(self, question: str, number: int) -> str:
        """The question, and two things to look at."""
        draw = random.Random(f"{self.seed} question {number}")
        first, second = (f"{draw.choice(_KINDS)} {draw.choice(_COLOURS)} {draw.choice(_THINGS)}" for _ in range(2))
        return f"{question} Look at the {first} and the {second}, if they are there."


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
