"""Image files to pixels. Each file's header is checked before any pixel is decoded."""

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
# Preprocessing scales the shorter side up to the tower's edge, so a longer picture would become enormous.
# Qwen-VL has the same limit.
_MAX_ASPECT_RATIO = 200


def check_pixels(images: Sequence[types_pb2.Image], max_pixels: int, max_total: int) -> None:
    """Checks the headers of all pictures and frames of a request. It decodes none of them.

    Raises InvalidRequest, naming the field, if a header is wrong (see `decode_image`), if an image has both data and
    frames, or if all pixels together exceed `max_total`.
    """
    total = 0
    for i, image in enumerate(images):
        if image.data and image.frames:
            raise InvalidRequest(f"images[{i}]: has both data and frames; send a picture or a video")
        for j, file in enumerate(image.frames or (image.data,)):
            field = f"images[{i}].frames[{j}]" if image.frames else f"images[{i}].data"
            width, height = _open(file, field, max_pixels).size
            total += width * height
    if total > max_total:
        raise InvalidRequest(f"images: {total} pixels together exceed {max_total}; scale them down or send fewer")


def decode_image(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """The RGB picture of a file, as transformers loads it: turned as its EXIF tag says, transparent pixels on white.

    Raises InvalidRequest, naming `field`, if the file is empty, of another format, animated or damaged, or if it has
    more than `max_pixels` pixels or too long a shape.
    """
    image = _open(data, field, max_pixels)
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except Exception as error:
        raise InvalidRequest(f"{field}: is truncated or damaged; upload it again") from error


def _open(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """The picture with its header read and checked, and no pixel decoded."""
    if not data:
        raise InvalidRequest(f"{field}: is empty; send a JPEG, PNG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit, see below
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{field}: has far more than {max_pixels} pixels; scale it down") from error
    except Exception as error:  # Pillow raises many kinds of errors for hostile headers
        raise InvalidRequest(f"{field}: is no readable JPEG, PNG or WebP file; check the upload") from error
    # Phones write JPEG files as MPO. Their second picture is the other eye's view, a depth map or a preview.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InvalidRequest(f"{field}: is animated; send one frame")
    size = f"{image.width} x {image.height}"
    if image.width * image.height > max_pixels:
        raise InvalidRequest(f"{field}: {size} is more than {max_pixels} pixels; scale it down")
    if max(image.size) > _MAX_ASPECT_RATIO * min(image.size):
        raise InvalidRequest(f"{field}: {size} is more than {_MAX_ASPECT_RATIO} times as long as wide; cut it")
    return image
