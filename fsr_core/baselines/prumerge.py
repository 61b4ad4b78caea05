"""PruMerge+ (LLaVA-PruMerge, arXiv 2403.15388): outliers of attention, an even spread, and merging."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fsr_core.checks import check_number
from fsr_core.one_by_one import OneByOne, by_falling, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["PruMerge"]


@dataclass(frozen=True)
class PruMerge(OneByOne):
    """Keeps tokens whose attention is an outlier and evenly spread ones, and moves each toward its nearest tokens.

    neighbours  share of all tokens that a kept token absorbs; 32 of 576 in the authors' code

    Outliers are above Q3 + 1.5 (Q3 - Q1) of `saliency` (section 3.2). In the paper their number sets the budget, and
    PruMerge+ adds as many evenly spread tokens (the authors' code about three times as many). Here the budget is given:
    at most K outliers are kept, by descending saliency, and the rest of the budget is spread evenly, in raster order,
    over the remaining tokens. Then the sum of a kept token's nearest tokens by cosine of keys is added to it. Each is
    weighted by its saliency as a share of the total (section 3.3, Algorithm 1).

    Departures: the paper compares keys by their plain product and has a weighted average. The authors' code takes the
    cosine and does not divide; this follows the code, like the published figures. The code adds one more token, the
    weighted sum of all dropped ones; it has no place in the grid and is left out. If several kept tokens absorb a
    dropped one, `merged_into` names the nearest of them.
    """

    name: ClassVar[str] = "prumerge"

    neighbours: float = 32 / 576

    def __post_init__(self) -> None:
        check_number("neighbours", self.neighbours, 0, 1)

    def _comparisons(self, n: int, k: int) -> int:
        return 2 * n * k  # similarities, and shares in the sums of the nearest

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        n, saliency = len(sample), sample.saliency.double()
        low, high = saliency.quantile(0.25), saliency.quantile(0.75)
        outliers = min(k, int((saliency > high + 1.5 * (high - low)).sum()))
        count = k - outliers
        order = by_falling(saliency)
        focus, rest = order[:outliers], order[outliers:].sort().values
        spread = rest[((torch.arange(count, device=rest.device) + 0.5) * len(rest) / max(1, count)).long()]
        centres = torch.cat([focus, spread])
        rows, merged_into = self._merged(sample, centres, max(1, round(self.neighbours * n)))
        return kept(sample, focus=focus, scan=spread, features=rows, merged_into=merged_into, priority=saliency)

    def _merged(self, sample: VisualTokens, centres: Tensor, count: int) -> tuple[Tensor, Tensor]:
        keys, features = unit_keys(sample), sample.features.float()
        saliency = sample.saliency.double()
        weight = (saliency / saliency.sum().clamp(min=torch.finfo(torch.float64).tiny)).float()
        similarity = keys[centres] @ keys.T  # [K, N]
        similarity.scatter_(1, centres.unsqueeze(1), -inf)
        nearest = similarity.topk(min(count, len(sample) - 1), dim=1).indices
        share = torch.zeros_like(similarity).scatter_(1, nearest, weight[nearest])
        rows = features[centres] + share @ features
        absorbing = torch.full_like(similarity, -inf).scatter(1, nearest, similarity.gather(1, nearest))
        best, which = absorbing.max(0)
        merged_into = torch.where(best > -inf, centres[which], -1)
        merged_into[centres] = -1
        return rows, merged_into
