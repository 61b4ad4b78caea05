"""Greedy selections that several methods share: farthest points with weights, and pivots."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

__all__ = ["pivots", "weighted_farthest"]

ROUNDING = 1e-6  # relative


def weighted_farthest(keys: Tensor, chosen: Tensor, weight: Tensor, count: int, nearest: float = -inf) -> Tensor:
    """`count` more tokens, one by one: the token of the largest weight * distance to the chosen ones, ties by index.

    keys     [N, Dk], of unit length; the distance is 1 - cosine
    chosen   int64 [C], at least one token
    weight   [N], at least 0
    nearest  the similarity to the chosen ones counts as at least this much; 0: no distance exceeds 1

    Returns int64 [count], in the order of the picks. Needs one row of similarities per pick.
    """
    near = torch.stack([(keys @ keys[part].T).amax(1) for part in chosen.split(64)]).amax(0).clamp_(min=nearest)
    taken = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    taken[chosen] = True
    picks: list[int] = []
    for _ in range(count):
        pick = int(((1 - near) * weight).masked_fill(taken, -1.0).argmax())
        picks.append(pick)
        taken[pick] = True
        near = torch.maximum(near, keys @ keys[pick])
    return torch.tensor(picks, dtype=torch.int64, device=keys.device)


def pivots(unit: Tensor, weight: Tensor, count: int) -> Tensor:
    """`count` tokens, one by one: the vector that is farthest from the span of the chosen ones, ties by index.

    The vectors are weight * unit. Once the chosen ones span all others, the rest go by weight, ties by index.

    unit    [N, D] fp32, of length 1, or 0
    weight  [N] fp32, at least 0

    This is QR with column pivoting, and the greedy MAP of a determinantal point process (DPP) with the kernel
    w_i cos_ij w_j (Chen et al., arXiv 1709.05135, eqs. 4-6 and 9, Algorithm 1): the distance, squared, is the volume
    that a token adds. One row of the kernel and one Cholesky row per pick, memory K x N. Returns int64 [count], in the
    order of the picks.
    """
    vectors = unit * weight.unsqueeze(1)
    volume = vectors.square().sum(1)
    floor = 1e-10 * volume.max()
    cholesky = torch.zeros(count, len(vectors), device=vectors.device)
    chosen: list[int] = []
    for step in range(count):
        # Volumes that are equal but for rounding tie. Without weights all first ones are.
        pick = int((volume >= (1 - ROUNDING) * volume.max()).byte().argmax())
        if not volume[pick] > floor:
            remaining = weight.clone()
            remaining[chosen] = -inf
            chosen += remaining.argsort(descending=True, stable=True)[: count - step].tolist()
            break
        chosen.append(pick)
        row = (vectors @ vectors[pick] - cholesky[:step, pick] @ cholesky[:step]) / volume[pick].sqrt()
        cholesky[step] = row
        volume = volume - row.square()
        volume[pick] = -inf
    return torch.tensor(chosen, dtype=torch.int64, device=vectors.device)
