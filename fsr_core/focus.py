"""Focus (arXiv 2602.05809, eqs. 1-4): the tokens that carry the evidence."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["focus_order", "focus_wanted", "minmax", "priority"]


def minmax(scores: Tensor) -> Tensor:
    """Scales each row of [B, N] to 0..1; a constant row becomes all ones. fp32."""
    scores = scores.float()
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (scores - low) / torch.where(spread > 0, spread, 1.0), torch.ones_like(scores))


def priority(saliency: Tensor, relevance: Tensor | None, alpha: float, beta: float) -> Tensor:
    """phi = relevance**alpha * saliency**beta (eq. 3), each normalised within its sample. [B, N] -> [B, N] fp32."""
    phi = _power(minmax(saliency), beta)
    return phi if relevance is None else _power(minmax(relevance), alpha) * phi


def _power(scores: Tensor, exponent: float) -> Tensor:
    """scores**exponent, the same bits for the same score wherever in the batch it stands."""
    if exponent in (1, 2, 3):  # products, which round alike everywhere
        return scores**exponent
    # On CPUs PyTorch takes whole vectors of memory through one routine and the rest through another, which rounds
    # otherwise. With gaps between the numbers all go through the second.
    return torch.stack([scores, scores], dim=-1)[..., 0] ** exponent


def focus_order(phi: Tensor) -> Tensor:
    """Token indices by falling priority, ties by index. [B, N] -> [B, N] int64."""
    return torch.argsort(phi, dim=1, descending=True, stable=True)


def focus_wanted(phi: Tensor, order: Tensor, rho: float) -> Tensor:
    """Smallest k whose k highest priorities sum to `rho` of all of it (eq. 4), before any clamp. -> [B] int64."""
    # The sum runs in double precision: in single, rho = 1 may never be reached.
    total = phi.gather(1, order).double().cumsum(1)
    return (total < rho * total[:, -1:]).sum(1) + 1
