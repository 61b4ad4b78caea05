"""HoloV (arXiv 2510.02912): the budget is shared out over regions of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_core.baselines.common import OneByOne, by_falling, cells, kept, unit_keys
from fsr_core.checks import check_number, check_whole
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["HoloV"]


@dataclass(frozen=True)
class HoloV(OneByOne):
    """Each crop gets a share of the budget by its mean score, and keeps its most attended tokens.

    crops   regions that the picture is cut into (16 in the authors' code)
    weight  of a token's contextual diversity against its attention (the code's beta, 0.09)

    A token's score is attention + weight * diversity, diversity being the variance of its cosines to the other tokens
    of its crop, rescaled so that both terms have the same mean magnitude in the crop. Quotas are the floors of the
    proportional shares, and one more each by falling share for what is left. Departures: the authors' code cuts runs
    of raster order, here crops are regions of the grid, as the paper draws them; what exceeds a crop's size the code
    replaces by zero vectors, here it goes to the most attended tokens not yet kept.
    """

    name: ClassVar[str] = "holov"

    crops: int = 16
    weight: float = 0.09

    def __post_init__(self) -> None:
        check_whole("crops", self.crops, 1)
        check_number("weight", self.weight, 0, 1e6)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        n, saliency, keys = len(sample), sample.saliency.float(), unit_keys(sample)
        crop = cells(n, min(int(self.crops), n), saliency.device)
        members = [(crop == c).nonzero().squeeze(1) for c in range(int(crop.max()) + 1)]
        means = torch.stack([self._mean_score(saliency[m], keys[m]) for m in members])
        quotas = _quotas(means, k)
        chosen = [m[by_falling(saliency[m])[:quota]] for m, quota in zip(members, quotas, strict=True)]
        focus = torch.cat(chosen)
        left = saliency.clone()
        left[focus] = -1.0
        return kept(sample, focus=focus, scan=by_falling(left)[: k - len(focus)], priority=saliency)

    def _mean_score(self, attention: Tensor, keys: Tensor) -> Tensor:
        if len(attention) == 1:
            return attention.mean()
        cosines, others = keys @ keys.T, len(attention) - 1
        cosines.fill_diagonal_(0)
        mean = cosines.sum(1, keepdim=True) / others
        # The diagonal's zero counts in the sum, as in the authors' code.
        variance = (cosines - mean).square().sum(1) / others
        scale = attention.mean() / variance.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return (attention + self.weight * scale * variance).mean()


def _quotas(means: Tensor, k: int) -> list[int]:
    total = means.double().sum()
    share = means.double() / total if total > 0 else torch.full_like(means, 1 / len(means), dtype=torch.float64)
    quotas = (share * k).floor().long()
    more = share.argsort(descending=True, stable=True)[: k - int(quotas.sum())]
    quotas[more] += 1
    return [int(quota) for quota in quotas]
