"""PruMerge+ (LLaVA-PruMerge, arXiv 2403.15388): attention's outliers, an even spread, and merging."""

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
    """Keeps the tokens whose attention is an outlier, fills up evenly, and moves each toward its nearest tokens.

    neighbours  share of all tokens that one kept token takes in; the authors' code takes 32 of 576

    Outliers lie above Q3 + 1.5 (Q3 - Q1) of `saliency` (section 3.2). The paper lets their number set the budget, and
    PruMerge+ adds as many evenly spread tokens (the authors' code about three times as many); here the budget is given,
    so at most K outliers are kept, by falling saliency, and the rest of it is spread evenly, in raster order, over the
    tokens left. Then each kept token gains the sum of its nearest tokens by cosine of keys, weighted by their saliency
    as a share of all (section 3.3, Algorithm 1). Departures: the paper compares keys by their plain product and writes
    a weighted average; the authors' code takes the cosine and leaves the division out, and this follows the code, as
    published figures do. The code's one further token, the weighted sum of all dropped ones, has no place in the grid
    and is left out. `merged_into` names only the nearest of the kept tokens that took a dropped one in.
    """

    name: ClassVar[str] = "prumerge"

    neighbours: float = 32 / 576

    def __post_init__(self) -> None:
        check_number("neighbours", self.neighbours, 0, 1)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        n, saliency = len(sample), sample.saliency.float()
        low, high = saliency.quantile(0.25), saliency.quantile(0.75)
        found = min(k, int((saliency > high + 1.5 * (high - low)).sum()))
        order = by_falling(saliency)
        focus, rest = order[:found], order[found:].sort().values
        spread = rest[((torch.arange(k - found, device=rest.device) + 0.5) * len(rest) / max(1, k - found)).long()]
        centres = torch.cat([focus, spread])
        rows, merged_into = self._merged(sample, centres, max(1, round(self.neighbours * n)))
        return kept(sample, focus=focus, scan=spread, features=rows, merged_into=merged_into, priority=saliency)

    def _merged(self, sample: VisualTokens, centres: Tensor, count: int) -> tuple[Tensor, Tensor]:
        keys, features = unit_keys(sample), sample.features.float()
        weight = sample.saliency.float() / sample.saliency.float().sum().clamp(min=torch.finfo(torch.float32).tiny)
        similarity = keys[centres] @ keys.T  # [K, N]
        similarity.scatter_(1, centres.unsqueeze(1), -inf)
        nearest = similarity.topk(min(count, len(sample) - 1), dim=1).indices
        share = torch.zeros_like(similarity).scatter_(1, nearest, weight[nearest])
        rows = features[centres] + share @ features
        taken = torch.full_like(similarity, -inf).scatter(1, nearest, similarity.gather(1, nearest))
        best, which = taken.max(0)
        merged_into = torch.where(best > -inf, centres[which], -1)
        merged_into[centres] = -1
        return rows, merged_into
