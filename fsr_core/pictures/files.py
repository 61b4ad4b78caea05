"""Files of pictures: their header, and their pixels as the models see them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageFile

from fsr_core.pictures.blocks import split
from fsr_core.pictures.modes import to_rgb

__all__ = ["PictureFile", "read_picture"]

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # tag of EXIF
_WHOLE_NUMBERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}  # bytes of the types of TIFF that are one
#: How a picture becomes upright, by its orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


class PictureFile:
    """A JPEG, PNG or WebP file with its header read, and no pixel decoded.

    Metadata neither make a file unreadable nor cost anything: only the orientation is read, and what cannot be read of
    it is ignored. Of a JPEG file with several pictures (MPO) the first one counts.

    Args:
        data: the file's content.
        opened: makes the file object from which Pillow reads the pixels.

    Attributes:
        size: width and height in pixels, before the picture is turned.
        upright_size: the same after it is turned.
        frames: number of its pictures, above 1 if it is animated.

    Raises what Pillow raises for other files and damaged headers, which is of many kinds.
    """

    size: tuple[int, int]
    upright_size: tuple[int, int]
    frames: int

    def __init__(self, data: bytes, opened: Callable[[bytes], IO[bytes]] = io.BytesIO) -> None:
        blocks = split(data)
        self._turn = _TURNS.get(_orientation(blocks.exif, blocks.xmp))
        self._pixels, self._opened = blocks.pixels, opened
        self._image = self._open()
        self.size = self._image.size
        self.upright_size = self.size[::-1] if self._turn in _SIDEWAYS else self.size
        self.frames = max(blocks.frames, getattr(self._image, "n_frames", 1))

    def _open(self) -> ImageFile.ImageFile:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # whoever opens the file checks its size
            return Image.open(self._opened(self._pixels), formats=_FORMATS)

    def decode(self, side: int | None = None) -> Image.Image:
        """The picture in RGB, upright, transparent parts on white. Raises what Pillow raises for damaged pixels.

        With `side`, a JPEG is decoded at a half, a quarter or an eighth of its width and height if its shorter side
        keeps so many pixels (scaled decoding of libjpeg-turbo): less work, and pixels of a coarser filter.
        """
        if side is not None:
            self._image.draft(None, (side, side))  # does nothing for other formats
        self._image.load()
        if self._image.format == "PNG":
            self._scale_transparent_colour()
        picture = to_rgb(self._image)
        return picture if self._turn is None else picture.transpose(self._turn)

    def _scale_transparent_colour(self) -> None:
        """Pillow scales the pixels of a PNG file to 8 bits, but not the colour that the file calls transparent."""
        image, colour, depth = self._image, self._image.info.get("transparency"), self._pixels[24]
        if image.mode == "L" and isinstance(colour, int) and depth < 8:
            image.info["transparency"] = (colour % 2**depth) * 255 // (2**depth - 1)
        elif image.mode == "RGB" and isinstance(colour, tuple) and depth == 16:
            del image.info["transparency"]
            image.putalpha(Image.fromarray(self._opaque(colour)))

    def _opaque(self, colour: tuple[int, ...]) -> np.ndarray:
        """Where a PNG file of 16 bits a channel does not have this colour: 255, else 0. ``[H, W]`` uint8.

        Pillow keeps the upper byte of each number. Decoded as if its bytes were swapped, the file gives the lower one.
        """
        low = self._open()
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        numbers = np.asarray(self._image).astype(np.uint16) << 8 | np.asarray(low)
        return np.where((numbers == colour).all(2), 0, 255).astype(np.uint8)


def read_picture(data: bytes) -> Image.Image:
    """The picture of a file, as `PictureFile.decode` gives it. Raises ValueError for a damaged or another file."""
    try:
        file = PictureFile(data)
    except Image.DecompressionBombError as error:
        raise ValueError("has far too many pixels; scale it down") from error
    except Exception as error:  # Pillow raises many kinds
        raise ValueError("is no readable JPEG, PNG or WebP file") from error
    try:
        return file.decode()
    except Exception as error:
        raise ValueError("is truncated or damaged") from error


def _orientation(exif: bytes, xmp: bytes) -> int:
    """How the picture lies, 1..8 as in EXIF; 1 is upright. EXIF comes before XMP.

    Pillow is not asked: it reads all tags of EXIF, and one byte may be the value of many thousand of them.
    """
    orientation = _exif_orientation(exif)
    if orientation is None:
        found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        orientation = int(found[1]) if found else 1
    return orientation


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF; None if there is none that can be read."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    if tiff[:2] not in (b"II", b"MM"):
        return None
    byte_order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], byte_order)

    first = number(4, 4) + 2
    for at in range(first, min(first + 12 * number(first - 2, 2), len(tiff) - 11), 12):
        if number(at, 2) == _ORIENTATION:
            size = _WHOLE_NUMBERS.get(number(at + 2, 2))
            return None if size is None or number(at + 4, 4) != 1 else number(at + 8, size)
    return None
