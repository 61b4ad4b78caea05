"""Image bytes to pixels, safely."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from services.errors import InvalidRequest

__all__ = ["decode_image"]

_FORMATS = ("JPEG", "PNG", "WEBP")


def decode_image(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """An RGB picture. The size is read from the header and checked before any pixel is decoded.

    Raises InvalidRequest, naming `field`, for no bytes, another format, an animation, too many pixels, a broken file.
    """
    if not data:
        raise InvalidRequest(f"{field}: is empty; send a JPEG, PNG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit, just below, is the rule
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{field}: has far more than {max_pixels} pixels; scale it down") from error
    except Exception as error:  # Pillow raises many kinds on hostile headers
        raise InvalidRequest(f"{field}: is no readable JPEG, PNG or WebP file; check the upload") from error
    if getattr(image, "n_frames", 1) > 1:
        raise InvalidRequest(f"{field}: is animated; send one frame")
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise InvalidRequest(f"{field}: {size} is more than {max_pixels} pixels; scale it down")
    try:
        image.load()
    except Exception as error:
        raise InvalidRequest(f"{field}: is truncated or damaged; upload it again") from error
    return image.convert("RGB")
