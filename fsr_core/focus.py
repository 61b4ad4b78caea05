"""Focus (arXiv 2602.05809, eqs. 1-4): the tokens that carry the evidence."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["focus_order", "focus_wanted", "minmax", "priority"]


def minmax(scores: Tensor) -> Tensor:
    """Scales each row of [B, N] to 0..1; a constant row becomes all ones. fp64."""
    scores = scores.double()
    low, high = scores.aminmax(dim=1, keepdim=True)
    # A constant row is 0 / 0 everywhere.
    return (scores - low).div_(high - low).nan_to_num_(nan=1.0)


def priority(saliency: Tensor, relevance: Tensor | None, alpha: float, beta: float) -> Tensor:
    """phi = relevance**alpha * saliency**beta (eq. 3), both normalised within the sample. [B, N] -> [B, N] fp64.

    In single precision steep exponents would make it 0 for many tokens, which then tie.
    """
    if relevance is None:
        return _power(minmax(saliency), beta)
    scaled = minmax(torch.cat([saliency, relevance]))
    return _power(scaled[len(saliency) :], alpha) * _power(scaled[: len(saliency)], beta)


def _power(scores: Tensor, exponent: float) -> Tensor:
    """scores**exponent. The same score gives the same bits at every place of the batch."""
    if exponent == 1:
        return scores
    if exponent in (2, 3):  # computed as products, which round in the same way everywhere
        return scores**exponent
    # On CPUs PyTorch has one routine for whole vectors of memory and another one for the rest; they round differently.
    # With gaps between the numbers it uses the second routine for all of them.
    return torch.stack([scores, scores], dim=-1)[..., 0] ** exponent


def focus_order(phi: Tensor) -> Tensor:
    """Token indices by descending priority, ties by index. [B, N] -> [B, N] int64."""
    return torch.argsort(phi, dim=1, descending=True, stable=True)


def focus_wanted(phi: Tensor, order: Tensor, rho: float) -> Tensor:
    """Smallest k whose k highest priorities reach `rho` of the sum of all (eq. 4), before the clamp. -> [B] int64."""
    total = phi.gather(1, order).double().cumsum(1)
    return (total < rho * total[:, -1:]).sum(1) + 1
