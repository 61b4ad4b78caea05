"""AnchorPrune (arXiv 2607.07033): a protected anchor of relevant tokens, then important tokens that are new to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.checks import check_number, check_sign, check_whole
from fsr_core.greedy import weighted_farthest
from fsr_core.one_by_one import ROW_COST, OneByOne, by_falling, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["AnchorPrune"]


@dataclass(frozen=True, kw_only=True)
class AnchorPrune(OneByOne):
    """Keeps the most relevant tokens as an anchor, and fills the budget by importance times distance to the kept ones.

    least            share of the budget that the anchor has at least (K_min: 5 of 32, 10 of 64, 20 of 128 in the paper)
    most             share that it has at most (K_max: half)
    novelty          cosine distance from which a token is new to the smallest anchor (tau)
    patience         the anchor ends with so many new tokens (P)
    relevance_sign   "+", or "-", which the authors' code uses with CLIP

    Stage 1 ranks tokens by relevance. The first K_min are the smallest anchor. Later ones join it in turn, up to K_max
    tokens. Those farther than `novelty` from the smallest anchor are counted, and the `patience`-th one is the last to
    join. Stage 2 adds one by one the token of the largest p * distance, ties by index: p is `saliency`, the distance
    is the smallest 1 - cosine to all kept tokens, at most 1.

    This is the rule of the authors' code (`anchorprune/selection.py` of MULTI-cau/AnchorPrune, commit 9aa2774); a test
    holds it to recorded selections of theirs. Departures: the code measures stage 1 in CLIP's joint space and
    stage 2 in the tower's features, here both stages use the backbone's similarity space. Its K_min is an absolute
    number; here it is a share, rounded down, at least 1. Without relevance `saliency` ranks stage 1, which is our
    reading (for Qwen the code matches patches and words instead).
    """

    name: ClassVar[str] = "anchorprune"

    least: float = 5 / 32
    most: float = 0.5
    novelty: float = 0.2
    patience: int = 3
    relevance_sign: Literal["+", "-"] = "+"

    def __post_init__(self) -> None:
        for name in ("least", "most"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("novelty", self.novelty, 0, 2)
        check_whole("patience", self.patience, 1)
        check_sign("relevance_sign", self.relevance_sign)

    def _comparisons(self, n: int, k: int) -> int:
        return ROW_COST * n * k

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        keys, rank = unit_keys(sample), sample.saliency
        if sample.relevance is not None:
            rank = -sample.relevance if self.relevance_sign == "-" else sample.relevance
        anchor = self._anchor(keys, by_falling(rank), k)
        saliency = sample.saliency.double()
        importance = saliency / saliency.max().clamp(min=torch.finfo(torch.float64).tiny)
        rest = weighted_farthest(keys, anchor, importance, k - len(anchor), nearest=0.0)
        return kept(sample, focus=anchor, scan=rest, priority=rank)

    def _anchor(self, keys: Tensor, order: Tensor, k: int) -> Tensor:
        """The protected tokens, from the unit keys [N, Dk] and the order of relevance [N]."""
        least = max(1, int(self.least * k))
        most = max(least, int(self.most * k))
        near = (keys[order[least:most]] @ keys[order[:least]].T).amax(1)
        new = (1 - near > self.novelty).cumsum(0)
        return order[: least + min(most - least, int((new < self.patience).sum()) + 1)]
