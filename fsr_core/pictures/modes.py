"""Pictures of every mode of Pillow in RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["to_rgb"]


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, itself if it is so already; transparent parts become white, as in the library.

    16-bit grey (``I;16``, in any byte order) is scaled to 8 bits; Pillow's own conversion cuts it off at 255, and shows
    nearly everything white. ``I`` and ``F`` name no range: 0..255 is taken as it is, as in Pillow, and an ``I`` with
    more as 16 bits.

    Raises ValueError for anything but a PIL image, for an image without pixels, and for ``I`` or ``F`` out of range.
    """
    if not isinstance(image, Image.Image) or 0 in image.size:
        raise ValueError("image: expected a PIL image with at least one pixel")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        # Pillow knows no direct way from La, which is grey that was multiplied with its alpha.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of larger numbers as ``L``, or ``LA`` if it has a transparent colour."""
    values = np.asarray(image)
    if image.mode in ("I", "F"):
        low, high = values.min(), values.max()
        most = 65535 if image.mode == "I" else 255
        if not (low >= 0 and high <= most):  # true of NaN
            raise ValueError(f"image: its pixels of mode {image.mode} are {low}..{high}; scale them to 0..255")
    wide = image.mode not in ("I", "F") or values.max() > 255
    grey = Image.fromarray((values >> 8 if wide else values).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
