"""Refine (arXiv 2602.05809, eqs. 8-9): scan anchors absorb the dropped tokens that are most similar to them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from fsr_core.segments import segment_sum

__all__ = ["absorbed", "merge"]


def absorbed(kept: Tensor, anchor: Tensor, similarity: Tensor, quotas: Sequence[int]) -> Tensor:
    """The index of the anchor that absorbs each token: int64 [B, N], -1 if none does.

    As many dropped tokens of each sample as `quotas` says are absorbed, those most similar to their anchor, ties by
    index. kept bool [B, N]; anchor, similarity [B, N] as in `Scan`; a quota is at most the number of dropped tokens.
    """
    score = similarity.masked_fill(kept, -inf)  # kept tokens come last
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    first = order[:, : max(quotas)]
    into = anchor.gather(1, first)
    if min(quotas) < max(quotas):
        place = torch.arange(max(quotas), device=kept.device)
        into = torch.where(place < torch.tensor(quotas, device=kept.device).unsqueeze(1), into, -1)
    return torch.full_like(order, -1).scatter_(1, first, into)


def merge(features: Tensor, merged_into: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """New features of the anchors that absorbed tokens: phi-weighted means, summed in fp32.

    features [B, N, D]; merged_into int64 [B, N]; phi [B, N] fp64. Returns the anchors' places [A] in the flattened
    batch, ascending, and their features [A, D] in the dtype of `features`. An anchor with zero weights does not change.
    """
    batch, n, width = features.shape
    source = (merged_into.flatten() >= 0).nonzero().squeeze(1)
    target = merged_into.flatten().index_select(0, source)
    if batch > 1:
        target += source - source % n
    anchors, slot = target.unique(return_inverse=True)
    rows, weight = features.reshape(-1, width), phi.double().view(-1, 1)
    before, own, absorbed = (
        table.index_select(0, at) for table, at in ((rows, anchors), (weight, anchors), (weight, source))
    )
    weights = own + segment_sum(absorbed, slot, len(anchors))
    # Each token's share of its anchor: phi itself may be too small for single precision.
    total = torch.where(weights > 0, weights, 1.0)
    shares = (absorbed / total.index_select(0, slot)).float()
    merged = segment_sum(rows.index_select(0, source).float().mul_(shares), slot, len(anchors))
    merged += before.float() * (own / total).float()
    return anchors, torch.where(weights > 0, merged.to(features.dtype), before)
