"""How small JPEGs are decoded, with the option `scaled_jpeg`."""

from __future__ import annotations

from math import ceil

from fsr_core.backbones import VisualEncoder

__all__ = ["jpeg_side"]


def jpeg_side(model: VisualEncoder, times: float | None) -> int | None:
    """The fewest pixels of the shorter side that a decoded JPEG keeps: `times` as many as the model scales pictures to.

    None, if `times` is: JPEGs are decoded in full. Raises ValueError, naming the option, for a model that prepares
    pictures in ways that depend on their size.
    """
    if times is None:
        return None
    side = model.sufficient_side()
    if side is None:
        raise ValueError(
            f"scaled-jpeg: how {model.info.family} prepares a picture depends on its number of pixels; leave it out"
        )
    return ceil(times * side)
