"""SPARE (arXiv 2606.18681): the tokens from which the others can be rebuilt, weighted by relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fsr_core.checks import check_sign
from fsr_core.greedy import pivots
from fsr_core.one_by_one import ROW_COST, OneByOne, kept, raw_keys, relevance_weight, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Spare"]


@dataclass(frozen=True)
class Spare(OneByOne):
    """Greedily adds the token of the largest relevance * norm of what the chosen tokens cannot rebuild of it.

    relevance_sign  "+": relevant tokens first; "-": the paper's anti-relevance, which it found to work for CLIP

    This is column subset selection by QR with column pivoting. Keys keep their lengths, unlike in `CDPruner`, whose
    rule it is otherwise: a scale of a column scales its residual too.

    This follows the paper's abstract: pruning is column subset selection, tokens with large projection residuals are
    selected one by one, and low relevance is a further criterion. The rest is our reading: the residual's norm is
    multiplied by relevance, which is min-max scaled within the sample, with 1e-6 added; residuals are measured in the
    backbone's similarity space; "+" is the default, as in the other methods here (docs/methods.md). Without relevance
    the weight is 1. Tokens without a residual are taken last, by length times relevance, ties by index.
    """

    name: ClassVar[str] = "spare"

    relevance_sign: Literal["+", "-"] = "+"

    def __post_init__(self) -> None:
        check_sign("relevance_sign", self.relevance_sign)

    def _comparisons(self, n: int, k: int) -> int:
        return 2 * ROW_COST * n * k  # as in CDPruner

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        relevance, keys = relevance_weight(sample, self.relevance_sign), raw_keys(sample).float()
        keys = keys / keys.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # so that all can be squared
        weight = torch.linalg.vector_norm(keys, dim=1) * relevance
        return kept(sample, scan=pivots(unit_keys(sample), weight, k), priority=relevance)
