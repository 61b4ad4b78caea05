"""SCOPE (arXiv 2510.24214): saliency times what a token adds to the coverage of all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch

from fsr_core.checks import check_number
from fsr_core.one_by_one import ROW_COST, OneByOne, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Scope"]

BLOCK = 16  # candidates per matrix product
# Measured among random keys, where earlier gains say little: the first picks together compute all gains so many times,
# and each later pick needs so many products.
ALL_GAINS, BLOCKS_OF_PICK = 16, 6


@dataclass(frozen=True)
class Scope(OneByOne):
    """Greedily adds the token of the highest SCOPE score (eq. 10): saliency**alpha times its coverage gain (eq. 9).

    alpha  exponent of saliency; 1 in the authors' code

    The coverage of a set is the sum over all tokens u of max(0, max over chosen s of cos(u, s)) (eqs. 5-6; Algorithm 1
    starts from 0 in line 2). A token's gain is its increase of the coverage (eq. 8). Gains only shrink while the set
    grows, so an earlier gain is an upper bound of the present one. Only candidates with the highest bounds are computed
    again. The choices are those of the plain greedy algorithm, with memory linear in N; the authors' code holds an
    N x N matrix and reads all of it at each step.
    """

    name: ClassVar[str] = "scope"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 100)

    def _comparisons(self, n: int, k: int) -> int:
        return n * (ALL_GAINS * n + k * (BLOCKS_OF_PICK * BLOCK + ROW_COST))

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        # Relative and in double precision: attention to a steep exponent is 0 in single precision.
        keys, saliency = unit_keys(sample), sample.saliency.double()
        weight = (saliency / saliency.max().clamp(min=torch.finfo(torch.float64).tiny)) ** self.alpha
        covered = torch.zeros(len(sample), device=keys.device)
        bound = torch.full_like(weight, inf)
        chosen: list[int] = []
        fresh = torch.zeros_like(covered, dtype=torch.bool)
        while len(chosen) < k:
            # In a stable order the lower index comes first on a tie, as in the plain algorithm.
            order = bound.argsort(descending=True, stable=True)
            best = int(order[0])
            if fresh[best]:
                chosen.append(best)
                covered = torch.maximum(covered, keys @ keys[best])
                bound[best] = -inf
                fresh.zero_()
                continue
            candidates = order[:BLOCK]
            candidates = candidates[~fresh[candidates] & (bound[candidates] > -inf)]
            gain = (keys[candidates] @ keys.T - covered).clamp_(min=0).sum(1) * weight[candidates]
            bound[candidates] = torch.minimum(gain, bound[candidates])
            fresh[candidates] = True
        return kept(sample, focus=torch.tensor(chosen, device=keys.device), priority=weight)
