"""The picture cut into regions, for methods that give each its share."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

__all__ = ["cells"]


def cells(n: int, count: int, device: torch.device) -> Tensor:
    """Cuts N tokens into exactly `count` regions: int64 [N], the region of each token.

    Where N is a square, the tokens are taken as a square grid in raster order and cut into bands of rows and each
    band into stretches, as nearly square as `count` allows. A `VisualTokens` does not hold its grid; other N are cut
    into runs of raster order.
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
