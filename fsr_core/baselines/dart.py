"""DART (arXiv 2502.11494): a few pivot tokens, and the tokens that duplicate them least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fsr_core.checks import check_whole
from fsr_core.one_by_one import OneByOne, by_falling, kept, raw_keys, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Dart"]


@dataclass(frozen=True)
class Dart(OneByOne):
    """DART's duplication rule, applied before the language model instead of after its second layer.

    pivots  (Definition 1) tokens with the largest L1 norm of their keys; 4 visual ones in the authors' code

    For each pivot in turn, the remaining tokens with the lowest cosine to it (eq. 7) are kept. Each pivot gets an equal
    share of the budget.

    Departures: the paper keeps the pivots and, for each pivot by itself, all tokens whose cosine to it is at most a
    threshold (eqs. 9-10); these sets may overlap. Here, as in the authors' code, the sets are disjoint and of a given
    size. The code's sizes do not add up to the budget; here they do, and the first pivots get the remainder. A gateway
    has no hidden states of the language model. So the backbone's similarity space stands for the model's keys and for
    its hidden states, and there are no text pivots (the code has 4): the question has no influence.
    """

    name: ClassVar[str] = "dart"

    pivots: int = 4

    def __post_init__(self) -> None:
        check_whole("pivots", self.pivots, 1)

    def _comparisons(self, n: int, k: int) -> int:
        return n * min(int(self.pivots), k)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        norm, keys = raw_keys(sample).abs().sum(1, dtype=torch.float64), unit_keys(sample)
        count = min(int(self.pivots), k)
        pivots = by_falling(norm)[:count]
        free = torch.ones(len(sample), dtype=torch.bool, device=keys.device)
        free[pivots] = False
        kept_sets = []
        for turn, pivot in enumerate(pivots.tolist()):
            share = (k - count) // count + (turn < (k - count) % count)
            remaining = free.nonzero().squeeze(1)
            least = remaining[by_falling(-(keys[remaining] @ keys[pivot]))[:share]]
            free[least] = False
            kept_sets.append(least)
        return kept(sample, focus=pivots, scan=torch.cat(kept_sets), priority=norm)
