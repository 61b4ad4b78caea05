"""Scan (arXiv 2602.05809, eqs. 5-7): farthest-point sampling conditioned on the focus set.

Only similarities to *chosen* tokens are needed, and a running maximum of them. Distances to the chosen set can only
shrink, so the few farthest candidates are likely to be chosen soon: on CPU their rows are computed together, at the
speed of a matrix product, and a fresh block is made when a choice falls outside it. The choices are those of the
plain greedy algorithm; memory is linear in N.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

__all__ = ["Scan", "scan", "unit"]

BLOCK = 16  # rows a matrix product computes at once on CPU


@dataclass(frozen=True)
class Scan:
    """`chosen` bool [B, N], the scan set S; `anchor` int64 [B, N] each token's most similar member of S (undefined
    where S is empty) and `similarity` [B, N] fp32 to it, -inf where S is empty."""

    chosen: Tensor
    anchor: Tensor
    similarity: Tensor


def unit(keys: Tensor, centre: bool) -> Tensor:
    """Keys at unit length in fp32, first centred on their mean if asked. A zero key stays zero. [B, N, Dk]."""
    keys = keys.float()
    if centre:
        keys = keys - keys.mean(1, keepdim=True)
    norm = keys.norm(dim=2, keepdim=True)
    return keys / torch.where(norm > 0, norm, 1.0)


def _rows(keys: Tensor, index: Tensor) -> Tensor:
    """Cosine of the tokens `index` [B, m] to all tokens: [B, m, N]."""
    picked = keys.gather(1, index.unsqueeze(2).expand(-1, -1, keys.shape[2]))
    return torch.bmm(picked, keys.transpose(1, 2))


def scan(keys: Tensor, focus: Tensor, counts: Tensor, least: Tensor, most: Tensor, radius: Tensor) -> Scan:
    """Adds the token farthest from everything chosen (eq. 6), ties by index, until a sample has enough.

    keys [B, N, Dk] of unit length; focus int64 [B, F] the focus set of each sample, of which the first counts[b]
    count; a sample stops at most[b] tokens, or from least[b] on once nothing is farther than radius[b].
    """
    batch, n, _ = keys.shape
    near = keys.new_full((batch, n), -inf)  # similarity to the closest chosen token
    everyone = torch.arange(batch, device=keys.device)
    steps = int((most - counts).max())
    chosen = torch.zeros(batch, n, dtype=torch.bool, device=keys.device)
    anchor = torch.zeros(batch, n, dtype=torch.int64, device=keys.device)
    similarity = keys.new_full((batch, n), -inf)
    if steps <= 0:
        return Scan(chosen, anchor, similarity)
    # Shorter focus sets are padded with their own first token, which changes no maximum.
    place = torch.arange(focus.shape[1], device=keys.device)
    focus = torch.where(place < counts.unsqueeze(1), focus, focus[:, :1])
    for some in focus.split(64, dim=1):
        near = torch.maximum(near, _rows(keys, some).amax(1))
    near.scatter_(1, focus, inf)
    block = 1 if keys.is_cuda else BLOCK  # on CUDA a row is cheap, and asking whether a block still holds is not
    ahead: Tensor | None = None
    rows = near
    for step in range(steps):
        farthest, pick = near.min(1)
        have = counts + step
        active = (have < most) & ~((have >= least) & (1 - farthest <= radius))
        if block > 1 and not bool(active.any()):
            break
        if block == 1:
            row = _rows(keys, pick.unsqueeze(1))[:, 0]
        else:
            slot = None if ahead is None else ahead == pick.unsqueeze(1)
            if slot is None or not bool((slot.any(1) | ~active).all()):
                ahead = near.topk(min(block, n), dim=1, largest=False).indices
                ahead = torch.where((ahead == pick.unsqueeze(1)).any(1, keepdim=True), ahead, pick.unsqueeze(1))
                rows = _rows(keys, ahead)
                slot = ahead == pick.unsqueeze(1)
            row = rows[everyone, slot.int().argmax(1)]
        # A stopped sample is left alone: its row counts as infinitely dissimilar.
        row = torch.where(active.unsqueeze(1), row, -inf)
        near = torch.maximum(near, row)
        near[everyone, pick] = torch.where(active, inf, near[everyone, pick])
        closer = row > similarity
        anchor = torch.where(closer, pick.unsqueeze(1), anchor)
        similarity = torch.where(closer, row, similarity)
        chosen[everyone, pick] |= active
    return Scan(chosen, anchor, similarity)
