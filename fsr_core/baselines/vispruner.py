"""VisPruner (arXiv 2412.01818, published version): important tokens, then what is left without duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fsr_core.checks import check_number, check_whole
from fsr_core.one_by_one import OneByOne, by_falling, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["VisPruner"]


@dataclass(frozen=True)
class VisPruner(OneByOne):
    """Half the budget by attention, half by taking duplicates out of the rest until it fits.

    important  share of the budget that goes to the most attended tokens (the paper's r, 0.5)
    per_round  duplicates removed in one round; 8 in the authors' code

    Duplicates are removed by the paper's Algorithm 1. In each round the tokens left, ordered by attention at first, are
    dealt into two hands alternately; the tokens of the first hand that resemble some token of the second most are
    removed, and the hands are put together again, the first sorted by falling resemblance. Departure: at least one
    token is kept for its importance, where the code rounds down to none at K = 1.
    """

    name: ClassVar[str] = "vispruner"

    important: float = 0.5
    per_round: int = 8

    def __post_init__(self) -> None:
        check_number("important", self.important, 0, 1)
        check_whole("per_round", self.per_round, 1)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        keys, order = unit_keys(sample), by_falling(sample.saliency)
        count = max(1, int(k * self.important))
        important, rest = order[:count], order[count:]
        wanted = k - count
        while wanted and len(rest) > wanted:
            first, second = rest[::2], rest[1::2]
            theirs = keys[second].T
            alike = torch.cat([(keys[some] @ theirs).amax(1) for some in first.split(512)])
            surplus = min(int(self.per_round), len(rest) - wanted)
            rest = torch.cat([first[by_falling(alike)[surplus:]], second])
        return kept(sample, focus=important, scan=rest[:wanted], priority=sample.saliency)
