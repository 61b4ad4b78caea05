"""VisPruner (arXiv 2412.01818, published version): important tokens, then the others without duplicates."""

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
    """Half the budget by attention, half by removing duplicates from the rest until it fits.

    important  share of the budget for the tokens with the most attention (r = 0.5 in the paper)
    per_round  duplicates removed per round; 8 in the authors' code

    The paper's Algorithm 1 removes duplicates. It starts from the remaining tokens, ordered by attention. Each round
    splits them alternately into two sets. It removes the tokens of the first set that are most similar to any token of
    the second. Then it joins the sets again, the first one sorted by descending similarity.

    Departures: at least one token is kept for its importance; the code rounds down to none at K = 1. The code needs an
    even number of remaining tokens in each round, and at least twice as many as the round removes (16). At an odd
    number or below 16 its indices do not fit, and it raises. Here the first set may have one token more, and the last
    rounds go on.
    """

    name: ClassVar[str] = "vispruner"

    important: float = 0.5
    per_round: int = 8

    def __post_init__(self) -> None:
        check_number("important", self.important, 0, 1)
        check_whole("per_round", self.per_round, 1)

    def _comparisons(self, n: int, k: int) -> int:
        count = max(1, int(k * self.important))
        if k == count:
            return 0
        # A round compares the halves of the remaining r tokens: r * r / 4 pairs, with r from n - count to k - count.
        return ((n - count) ** 3 - (k - count) ** 3) // (12 * int(self.per_round)) + (n - count) ** 2 // 4

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        keys, order = unit_keys(sample), by_falling(sample.saliency)
        count = max(1, int(k * self.important))
        important, rest = order[:count], order[count:]
        diverse = k - count
        while diverse and len(rest) > diverse:
            first, second = rest[::2], rest[1::2]
            theirs = keys[second].T
            alike = torch.cat([(keys[part] @ theirs).amax(1) for part in first.split(512)])
            surplus = min(int(self.per_round), len(rest) - diverse)
            rest = torch.cat([first[by_falling(alike)[surplus:]], second])
        return kept(sample, focus=important, scan=rest[:diverse], priority=sample.saliency)
