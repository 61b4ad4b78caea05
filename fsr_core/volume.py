"""This project's own method: the largest volume of centred tokens, weighted by relevance and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.checks import check_number, check_sign
from fsr_core.focus import minmax
from fsr_core.greedy import pivots
from fsr_core.one_by_one import ROW_COST, OneByOne, centred_keys, kept, raw_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["VolumeFSR"]


@dataclass(frozen=True, kw_only=True)
class VolumeFSR(OneByOne):
    """Greedy MAP of a DPP with the kernel w_i cos_ij w_j, as CDPruner's (arXiv 2506.10967) with other weights and keys.

    w = (floor + (1 - floor) r**alpha) * (|key| / longest key)**length. r is relevance, min-max scaled; 1 without it.
    cos_ij is that of keys less their mean, as in Cen-Prune (arXiv 2608.30263).

    alpha            how fast the weight falls with relevance
    floor            least weight of relevance, so that a token counts which the question does not name
    length           power of the key's length; 0 leaves it out
    relevance_sign   "+": relevant tokens are those like the question; "-": those unlike it

    Chosen by `benchmarks/tune_volume.py` on one half of the validation scenes (docs/results.md). No token is merged. An
    `auto` budget keeps its maximum, because volumes say little about how many tokens a question needs.
    """

    name: ClassVar[str] = "fsr_volume"

    alpha: float = 3.0
    floor: float = 0.1
    length: float = 0.5
    relevance_sign: Literal["+", "-"] = "+"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 100)
        check_number("floor", self.floor, 0, 1)
        check_number("length", self.length, 0, 10)
        check_sign("relevance_sign", self.relevance_sign)

    def weight(self, sample: VisualTokens) -> Tensor:
        """w of each token, [N] fp64."""
        keys = raw_keys(sample).double()
        lengths = torch.linalg.vector_norm(keys / keys.abs().max().clamp(min=1e-60), dim=1)  # all can be squared
        weight = (lengths / lengths.max().clamp(min=1e-30)).clamp(min=1e-6) ** self.length
        if sample.relevance is not None:
            signed = -sample.relevance if self.relevance_sign == "-" else sample.relevance
            weight = weight * (self.floor + (1 - self.floor) * minmax(signed.unsqueeze(0))[0] ** self.alpha)
        return weight

    def _comparisons(self, n: int, k: int) -> int:
        return 2 * ROW_COST * n * k  # for each pick a row of the kernel, and the Cholesky rows of the picks before it

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        weight = self.weight(sample).clamp(min=1e-12).float()
        return kept(sample, scan=pivots(centred_keys(sample), weight, k), priority=weight)
