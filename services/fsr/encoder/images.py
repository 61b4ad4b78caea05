"""Image bytes to pixels, safely."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from PIL import Image, ImageOps

from fsr.common.errors import InvalidRequest
from fsr.v1 import types_pb2
from fsr_core.backbones.vision.image_processors import to_rgb

__all__ = ["check_pixels", "decode_image"]

_FORMATS = ("JPEG", "PNG", "WEBP")
_LONGEST = 200  # scaling the shorter side up to a tower's edge makes such a picture enormous; Qwen-VL refuses more too


def check_pixels(images: Sequence[types_pb2.Image], max_pixels: int, max_total: int) -> None:
    """Looks at the headers of a request's pictures and frames before any of them is decoded.

    Raises InvalidRequest, naming the field, for a picture as in `decode_image`, or more than `max_total` together.
    """
    total = 0
    for i, image in enumerate(images):
        if image.data and image.frames:
            raise InvalidRequest(f"images[{i}]: has both data and frames; send a picture or a video")
        for j, file in enumerate(image.frames or (image.data,)):
            field = f"images[{i}].frames[{j}]" if image.frames else f"images[{i}].data"
            width, height = _opened(file, field, max_pixels).size
            total += width * height
    if total > max_total:
        raise InvalidRequest(f"images: {total} pixels together exceed {max_total}; scale them down or send fewer")


def decode_image(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """An RGB picture, upright as its EXIF tag says, what is transparent on white: as the library reads files. The size
    is read from the header and checked before any pixel is decoded.

    Raises InvalidRequest, naming `field`, for no bytes, another format, an animation, too many pixels, a shape that no
    preprocessing is made for, a broken file.
    """
    image = _opened(data, field, max_pixels)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except Exception as error:
        raise InvalidRequest(f"{field}: is truncated or damaged; upload it again") from error


def _opened(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """The picture with its header read."""
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
    # The second picture of an MPO, a JPEG as phones write it, is the other eye's view, a depth map or a preview.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InvalidRequest(f"{field}: is animated; send one frame")
    size = f"{image.width} x {image.height}"
    if image.width * image.height > max_pixels:
        raise InvalidRequest(f"{field}: {size} is more than {max_pixels} pixels; scale it down")
    if max(image.size) > _LONGEST * min(image.size):
        raise InvalidRequest(f"{field}: {size} is more than {_LONGEST} times as long as wide; cut it")
    return image
