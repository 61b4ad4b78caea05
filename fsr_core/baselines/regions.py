"""Regions of a picture, for methods that give each region its share."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

__all__ = ["region_of_tokens"]


def region_of_tokens(n: int, count: int, device: torch.device) -> Tensor:
    """The region of each of N tokens, int64 [N]; there are exactly `count` regions.

    `VisualTokens` does not hold its grid. If N is a square, the tokens count as a square grid in raster order. The grid
    is cut into bands of rows, and each band into regions, as nearly square as `count` allows. Any other N is cut into
    runs of raster order.
    """
    side = isqrt(n)
    if side * side != n:
        return torch.arange(n, device=device) * count // n
    bands = min(side, max(1, round(count**0.5)), count)
    while -(-count // bands) > side:  # a band of one row holds at most `side` regions
        bands += 1
    row, column = torch.arange(n, device=device) // side, torch.arange(n, device=device) % side
    band = row * bands // side
    first = torch.tensor([count * b // bands for b in range(bands + 1)], device=device)
    return first[band] + column * (first[band + 1] - first[band]) // side
