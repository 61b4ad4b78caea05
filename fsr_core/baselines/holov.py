"""HoloV (arXiv 2510.02912, section 4.1): the budget is shared out over regions of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_core.baselines.regions import cells
from fsr_core.checks import check_number, check_whole
from fsr_core.one_by_one import OneByOne, by_falling, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["HoloV"]


@dataclass(frozen=True)
class HoloV(OneByOne):
    """Each crop gets a share of the budget by its mean score, and keeps its tokens of the highest score (eq. 5).

    crops   regions that the picture is cut into (16 in the authors' code)
    weight  of a token's diversity against its attention: 1 in eq. 3; 0.09 in the code (its alpha); 0: attention alone

    A token's score is H = A + weight * gamma V (eq. 3): A its attention, V the variance of its cosines to the other
    tokens of its crop (eqs. 1-2; the masked diagonal's zero counts, as in the code), gamma V of A's mean in the crop.
    Crops weigh as their mean H (eq. 4 with tau = 1, as in the code). Quotas are the floors of the proportional shares;
    the heaviest crop gets what is left, and what exceeds a crop's size goes to the others by weight times room.

    By gamma's definition mean H is proportional to mean A, so V decides only which tokens of a crop are kept. The
    authors' code departs from eq. 5 and takes those of the highest A: its diversity term has no effect but for rounding
    and crops of one token. It also hands out what the floors leave one each by falling weight, and replaces what
    exceeds a crop's size by zero vectors. Departures: the code cuts runs of raster order, here crops are regions of the
    grid, as the paper draws them; refetching inside the language model (section 4.1.1) is left out.
    """

    name: ClassVar[str] = "holov"

    crops: int = 16
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_whole("crops", self.crops, 1)
        check_number("weight", self.weight, 0, 1e6)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        n, saliency, keys = len(sample), sample.saliency.float(), unit_keys(sample)
        crop = cells(n, min(int(self.crops), n), saliency.device)
        members = [(crop == c).nonzero().squeeze(1) for c in range(int(crop.max()) + 1)]
        scores = torch.empty_like(saliency)
        for m in members:
            scores[m] = self._scores(saliency[m], keys[m])
        means = torch.stack([scores[m].mean() for m in members])
        quotas = _quotas(means.cpu().double(), torch.tensor([len(m) for m in members]), k)
        chosen = [m[by_falling(scores[m])[:quota]] for m, quota in zip(members, quotas, strict=True)]
        return kept(sample, focus=torch.cat(chosen), priority=scores)

    def _scores(self, attention: Tensor, keys: Tensor) -> Tensor:
        """H of one crop, from the attention [M] and the unit keys [M, Dk] of its tokens. -> [M]"""
        cosines, others = keys @ keys.T, max(1, len(attention) - 1)
        cosines.fill_diagonal_(0)
        mean = cosines.sum(1, keepdim=True) / others
        variance = (cosines - mean).square().sum(1) / others
        # Where nothing varies, as in a crop of one token, gamma is 0 / 0: V then says the same of every token.
        relative = variance / variance.mean() if variance.any() else torch.ones_like(variance)
        return attention + self.weight * attention.mean() * relative


def _quotas(means: Tensor, sizes: Tensor, k: int) -> list[int]:
    """How many tokens each crop keeps: `k` in all, at most its size. [C] fp64, [C] -> C numbers."""
    total = means.sum()
    weights = means / total if total > 0 else torch.full_like(means, 1 / len(means))
    quotas = (weights * k + 1e-4).floor().long()  # a share that rounding left just short of a whole number is whole
    quotas[weights.argmax()] += k - quotas.sum()
    while surplus := int((quotas - sizes).clamp(min=0).sum()):
        quotas = quotas.minimum(sizes)
        room = sizes - quotas
        pull = weights * room
        pull = pull if pull.sum() > 0 else room.double()
        more = (surplus * pull / pull.sum()).floor().long()
        more[pull.argmax()] += surplus - more.sum()
        quotas = quotas + more
    return [int(quota) for quota in quotas]
