"""CDPruner (arXiv 2506.10967): a determinantal point process conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fsr_core.checks import check_sign
from fsr_core.greedy import pivots
from fsr_core.one_by_one import ROW_COST, OneByOne, kept, relevance_weight, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["CDPruner"]


@dataclass(frozen=True)
class CDPruner(OneByOne):
    """Greedy MAP (eq. 8, log-det) of a DPP with the kernel diag(r) L diag(r) (eq. 7), L_ij = cos(key_i, key_j) (eq. 3).

    relevance_sign  "+" as in the paper (eq. 5); "-" as in the authors' code for CLIP

    r is the relevance, min-max scaled (eq. 6). The greedy step is that of Chen et al. (`pivots`). Without relevance r
    is 1, and only diversity decides.

    Departures: 1e-6 is added to the scaled relevance (the authors' code adds it before it divides). Constant relevance
    becomes ones (eq. 6 is 0 / 0 then). Relevance is scaled within the sample (the code scales over the whole batch).
    Once K exceeds the rank of the keys, the remaining volume is zero, and the code divides by its square root and gets
    NaN; here the remaining tokens go by relevance, ties by index.
    """

    name: ClassVar[str] = "cdpruner"

    relevance_sign: Literal["+", "-"] = "+"

    def __post_init__(self) -> None:
        check_sign("relevance_sign", self.relevance_sign)

    def _comparisons(self, n: int, k: int) -> int:
        return 2 * ROW_COST * n * k  # for each pick a row of the kernel, and the Cholesky rows of the picks before it

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        relevance = relevance_weight(sample, self.relevance_sign)
        return kept(sample, scan=pivots(unit_keys(sample), relevance, k), priority=relevance)
