"""HoloV (arXiv 2510.02912, section 4.1): each region of the picture gets a share of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_core.baselines.regions import region_of_tokens
from fsr_core.checks import check_number, check_whole
from fsr_core.one_by_one import OneByOne, by_falling, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["HoloV"]


@dataclass(frozen=True)
class HoloV(OneByOne):
    """Each crop gets a share of the budget by its mean score, and keeps its tokens of the highest score (eq. 5).

    crops   number of regions of the picture (16 in the authors' code)
    weight  of a token's diversity against its attention: 1 in eq. 3; 0.09 in the code (its alpha); 0: only attention

    A token's score is H = A + weight * gamma V (eq. 3). A is its attention. V is the variance of its cosines to the
    other tokens of its crop (eqs. 1-2; the zero on the masked diagonal counts, as in the code). Gamma scales V to the
    mean of A in the crop. A crop's weight is its mean H (eq. 4 with tau = 1, as in the code). Quotas are the floors of
    the proportional shares. The heaviest crop gets the remainder. What exceeds a crop's size goes to the others, in
    proportion to weight times free places.

    By the definition of gamma the mean of H is proportional to the mean of A, so V decides only which tokens of a crop
    are kept. The authors' code departs from eq. 5 and takes the tokens of the highest A; there diversity has no effect,
    except by rounding and in crops of one token. The code also gives the remainder of the floors to crops one by one,
    by descending weight, and replaces what exceeds a crop's size by zero vectors.

    Departures: the code cuts runs of raster order; here crops are regions of the grid, as in the paper's figures.
    Refetching inside the language model (section 4.1.1) is left out.
    """

    name: ClassVar[str] = "holov"

    crops: int = 16
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_whole("crops", self.crops, 1)
        check_number("weight", self.weight, 0, 1e6)

    def _comparisons(self, n: int, k: int) -> int:
        return n * -(-n // min(int(self.crops), n))

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        n, saliency, keys = len(sample), sample.saliency.double(), unit_keys(sample)
        crop = region_of_tokens(n, min(int(self.crops), n), saliency.device)
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
        # Without variance, as in a crop of one token, gamma is 0 / 0; then V is the same for every token.
        relative = variance / variance.mean() if variance.any() else torch.ones_like(variance)
        return attention + self.weight * attention.mean() * relative


def _quotas(means: Tensor, sizes: Tensor, k: int) -> list[int]:
    """How many tokens each crop keeps: `k` in total, none more than its size. [C] fp64, [C] -> C numbers."""
    total = means.sum()
    weights = means / total if total > 0 else torch.full_like(means, 1 / len(means))
    quotas = (weights * k + 1e-4).floor().long()  # rounding may put a whole share just below its number
    quotas[weights.argmax()] += k - quotas.sum()
    while surplus := int((quotas - sizes).clamp(min=0).sum()):
        quotas = quotas.minimum(sizes)
        free = sizes - quotas
        pull = weights * free
        pull = pull if pull.sum() > 0 else free.double()
        more = (surplus * pull / pull.sum()).floor().long()
        more[pull.argmax()] += surplus - more.sum()
        quotas = quotas + more
    return [int(quota) for quota in quotas]
