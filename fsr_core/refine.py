"""Refine (arXiv 2602.05809, eqs. 8-9): scan anchors absorb the dropped tokens that are most similar to them."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from fsr_core.segments import segment_sum

__all__ = ["absorbed", "merge"]


def absorbed(kept: Tensor, anchor: Tensor, similarity: Tensor, scan_counts: Tensor, kappa: float) -> Tensor:
    """The index of the anchor that absorbs each token: int64 [B, N], -1 if none does.

    The floor(kappa * |S|) dropped tokens that are most similar to their anchor are absorbed, ties by index. kept bool
    [B, N]; anchor, similarity [B, N] as in `Scan`; scan_counts int64 [B], |S|.
    """
    quota = (scan_counts.double() * kappa).floor().long()
    score = similarity.masked_fill(kept, -inf)
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(kept.shape[1], device=kept.device).expand_as(order))
    taken = (rank < quota.unsqueeze(1)) & ~kept & (scan_counts > 0).unsqueeze(1)
    return torch.where(taken, anchor, -1)


def merge(features: Tensor, merged_into: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """New features of the anchors that absorbed tokens: phi-weighted means, summed in fp32.

    features [B, N, D]; merged_into int64 [B, N]; phi [B, N] fp64. Returns the anchors' places [A] in the flattened
    batch, ascending, and their features [A, D] in the dtype of `features`. An anchor with zero weights does not change.
    """
    batch, n, width = features.shape
    first = n * torch.arange(batch, device=features.device).unsqueeze(1)
    source = (merged_into >= 0).flatten().nonzero().squeeze(1)
    anchors, slot = (merged_into + first).flatten()[source].unique(return_inverse=True)
    rows, weight = features.reshape(-1, width), phi.double().flatten().unsqueeze(1)
    before = rows[anchors]
    weights = weight[anchors] + segment_sum(weight[source], slot, len(anchors))
    # Each token's share of its anchor: phi itself may be too small for single precision.
    total = torch.where(weights > 0, weights, 1.0)
    added = segment_sum(rows[source].float() * (weight[source] / total[slot]).float(), slot, len(anchors))
    added += before.float() * (weight[anchors] / total).float()
    return anchors, torch.where(weights > 0, added.to(features.dtype), before)
