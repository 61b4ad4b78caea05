"""HoloV (arXiv 2510.02912, section 4.1): each region of the picture gets a share of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.baselines.regions import region_of_tokens
from fsr_core.checks import check_choice, check_number, check_whole
from fsr_core.one_by_one import OneByOne, by_falling, kept, raw_keys, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["HoloV"]

EPSILON = 1e-6  # in three quotients of the authors' code


@dataclass(frozen=True)
class HoloV(OneByOne):
    """Each crop gets a share of the budget by its mean score, and keeps its best tokens.

    crops   number of regions of the picture (16 in the authors' code)
    weight  of a token's diversity against its attention; None: 1 for the paper's rule (eq. 3), 0.09 for the code's
    rule    "paper": the rule of the text; "code": that of the authors' code (`llava/model/utils.py` of obananas/HoloV,
            commit 1d2e65e), with its selection

    A token's score is H = A + weight * gamma V (eq. 3). A is its attention. V is the variance of its cosines to the
    other tokens of its crop (eqs. 1-2; the zero on the masked diagonal counts, as in the code). Gamma scales V to the
    mean of A in the crop. A crop's weight is its mean H (eq. 4 with tau = 1, as in the code).

    The paper's rule: a crop keeps its tokens of the highest H (eq. 5). Quotas are the floors of the proportional
    shares. The heaviest crop gets the remainder. What exceeds a crop's size goes to the others, in proportion to weight
    times free places. Crops are regions of the grid, as in the paper's figures. By the definition of gamma the mean of
    H is proportional to the mean of A, so V decides only which tokens of a crop are kept.

    The code's rule: crops are runs of raster order, longer ones first. A crop keeps its tokens of the highest A, so
    diversity hardly has an effect. The remainder of the floors goes to the crops one by one, by descending weight, ties
    by index. A crop of one token counts a thousandth. What exceeds a crop's size is lost: the code fills up with zero
    vectors, and here fewer than K tokens are kept.

    Refetching inside the language model (section 4.1.1) is left out.
    """

    name: ClassVar[str] = "holov"

    crops: int = 16
    weight: float | None = None
    rule: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        check_whole("crops", self.crops, 1)
        if self.weight is not None:
            check_number("weight", self.weight, 0, 1e6)
        check_choice("rule", self.rule, ("paper", "code"))

    def _comparisons(self, n: int, k: int) -> int:
        return n * -(-n // min(int(self.crops), n))

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        crops = min(int(self.crops), len(sample))
        return self._by_code(sample, crops, k) if self.rule == "code" else self._by_paper(sample, crops, k)

    def _by_paper(self, sample: VisualTokens, crops: int, k: int) -> CompressedTokens:
        saliency, keys = sample.saliency.double(), unit_keys(sample)
        crop = region_of_tokens(len(sample), crops, saliency.device)
        members = [(crop == c).nonzero().squeeze(1) for c in range(crops)]
        scores = torch.empty_like(saliency)
        for m in members:
            scores[m] = _scores(saliency[m], keys[m], 1.0 if self.weight is None else self.weight)
        means = torch.stack([scores[m].mean() for m in members])
        quotas = _quotas(means.cpu().double(), torch.tensor([len(m) for m in members]), k)
        chosen = [m[by_falling(scores[m])[:quota]] for m, quota in zip(members, quotas, strict=True)]
        return kept(sample, focus=torch.cat(chosen), priority=scores)

    def _by_code(self, sample: VisualTokens, crops: int, k: int) -> CompressedTokens:
        saliency, keys = sample.saliency.float(), raw_keys(sample).float()
        members = torch.arange(len(sample), device=saliency.device).tensor_split(crops)
        weight = 0.09 if self.weight is None else self.weight
        means = torch.stack([_mean_score_in_code(saliency[m], keys[m], weight) for m in members])
        quotas = (means / (means.sum() + EPSILON) * k).floor().long()
        quotas[by_falling(means)[: k - int(quotas.sum())]] += 1
        chosen = [m[by_falling(saliency[m])[:quota]] for m, quota in zip(members, quotas.tolist(), strict=True)]
        return kept(sample, focus=torch.cat(chosen), priority=saliency)


def _variance(unit: Tensor) -> Tensor:
    """V of eqs. 1-2 of one crop, from the unit keys [M, Dk] of its tokens. -> [M]"""
    cosines, others = unit @ unit.T, max(1, len(unit) - 1)
    cosines.fill_diagonal_(0)
    mean = cosines.sum(1, keepdim=True) / others
    return (cosines - mean).square().sum(1) / others


def _scores(attention: Tensor, keys: Tensor, weight: float) -> Tensor:
    """H of one crop, from the attention [M] and the unit keys [M, Dk] of its tokens. -> [M]"""
    variance = _variance(keys)
    # Without variance, as in a crop of one token, gamma is 0 / 0; then V is the same for every token.
    relative = variance / variance.mean() if variance.any() else torch.ones_like(variance)
    return attention + weight * attention.mean() * relative


def _mean_score_in_code(attention: Tensor, keys: Tensor, weight: float) -> Tensor:
    """The mean H of one crop as the code computes it: in fp32, so that floors are the same. [M], [M, Dk] -> []"""
    if len(attention) == 1:
        return attention.mean()
    variance = _variance(keys / (keys.norm(dim=1, keepdim=True) + EPSILON))
    scaled = attention * 1e3
    gamma = scaled.mean() / (variance.mean() + EPSILON)
    return (scaled + weight * (variance * gamma)).mean()


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
