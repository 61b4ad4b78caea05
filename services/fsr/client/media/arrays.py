"""PIL images and arrays as PNG files of the same pixels.

NumPy and Pillow are imported here only once the caller has passed something of theirs: the SDK needs neither.
"""

from __future__ import annotations

import struct
import sys
import zlib
from io import BytesIO
from typing import Any

from fsr.client.errors import InvalidRequestError

__all__ = ["is_array", "is_pil_image", "png_of_array", "png_of_pil_image"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: grey, grey with alpha, RGB, RGBA
_LEFT = 1  # PNG's filter that writes each byte as its difference to the pixel on the left
_FAST = 1  # zlib's level
_SHAPES = "[H, W] or [H, W, C] with 1 to 4 channels"
# Modes of Pillow that PNG can hold, and the ones that keep what others hold.
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"}
_WIDER = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "I;16L": "I;16", "I;16N": "I;16"}


def is_pil_image(source: Any) -> bool:
    """Whether it is an image of Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(source, pillow.Image)


def is_array(source: Any) -> bool:
    """Whether NumPy can make an array of it without copying a Python list."""
    return hasattr(source, "__array__") and not isinstance(source, type)


def png_of_array(source: Any, field: str) -> bytes:
    """An array [H, W] or [H, W, C] as a PNG file: grey, grey with alpha, RGB or RGBA by its C of 1 to 4.

    uint8 and uint16 are taken as they are, floats as 0..1, booleans as black and white, other integers as 0..255.

    Raises InvalidRequestError, which names `field`, for any other shape or value.
    """
    import numpy as np

    try:
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:  # such as a tensor on a GPU
        name = type(source).__name__
        raise InvalidRequestError(f"{field}: {name} gives no array ({error}); pass one of NumPy") from error
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in _COLOUR_TYPES or 0 in array.shape:
        raise InvalidRequestError(f"{field}: an array of shape {list(array.shape)} is no picture; {_remedy(array)}")
    return _png(_pixels(array, field))


def _remedy(array: Any) -> str:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return f"it must be {_SHAPES}: array.transpose(1, 2, 0)"
    if array.ndim == 4:
        return "several pictures are a list(array), and frames of a video Video(list(array))"
    return f"it must be {_SHAPES}"


def _pixels(array: Any, field: str) -> Any:
    """The same numbers as uint8 or uint16. Raises InvalidRequestError."""
    import numpy as np

    kind = array.dtype.kind
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if kind == "u" and array.dtype.itemsize <= 2:
        return array
    if kind not in "uif":
        raise InvalidRequestError(
            f"{field}: an array of {array.dtype} is no picture; use uint8, uint16 or floats in 0..1"
        )
    low, high, most = array.min(), array.max(), 1 if kind == "f" else 255
    if not (low >= 0 and high <= most):  # true of NaN
        remedy = "divide floats by their maximum" if kind == "f" else "scale it to uint8"
        raise InvalidRequestError(f"{field}: the array's {array.dtype} are {low}..{high}, not 0..{most}; {remedy}")
    return np.rint(array * 255.0).astype(np.uint8) if kind == "f" else array.astype(np.uint8)


def _png(pixels: Any) -> bytes:
    """A PNG file (ISO/IEC 15948) of uint8 or uint16 [H, W, C]."""
    import numpy as np

    height, width, channels = pixels.shape
    size = pixels.dtype.itemsize
    numbers = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    lines = np.empty((height, 1 + width * channels * size), np.uint8)
    lines[:, 0] = _LEFT
    lines[:, 1:] = numbers.view(np.uint8).reshape(height, -1)
    pixel = channels * size
    lines[:, 1 + pixel :] -= lines[:, 1:-pixel].copy()
    header = struct.pack(">IIBBBBB", width, height, 8 * size, _COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(lines.data, _FAST)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def png_of_pil_image(image: Any, field: str) -> bytes:
    """An image of Pillow as a PNG file, upright as its EXIF orientation says. Of an animation it is the current frame.

    Raises InvalidRequestError, which names `field`.
    """
    from PIL import ImageOps

    if 0 in image.size:
        raise InvalidRequestError(f"{field}: the PIL image has no pixels; check how it was made")
    file = BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F"):
            upright = _narrow(upright, field)
        elif upright.mode not in _PNG_MODES:
            upright = upright.convert(_WIDER.get(upright.mode, "RGB"))
        upright.save(file, "PNG", compress_level=_FAST, icc_profile=None, exif=b"")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files, and for closed ones
        raise InvalidRequestError(f"{field}: the PIL image cannot be read ({error}); check its file") from error
    return file.getvalue()


def _narrow(image: Any, field: str) -> Any:
    """Modes I and F name no range: 0..255 is taken as it is, and an I with more as 16 bits, as the encoder does."""
    low, high = image.getextrema()
    if low >= 0 and high <= 255:
        return image.convert("L")
    if image.mode == "I" and low >= 0 and high <= 65535:
        return image.convert("I;16")
    raise InvalidRequestError(f"{field}: its pixels of mode {image.mode} are {low}..{high}; scale them to 0..255")
