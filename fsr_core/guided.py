"""FSR with a bounded Focus and a Scan that prefers evidence: this project's own variant, for small budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.checks import check_number, check_sign
from fsr_core.focus import focus_order, focus_wanted, minmax
from fsr_core.greedy import weighted_farthest
from fsr_core.one_by_one import ROW_COST, OneByOne, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["GuidedFSR"]


@dataclass(frozen=True, kw_only=True)
class GuidedFSR(OneByOne):
    """Focus and Scan of arXiv 2602.05809 with three changes that help at small budgets.

    alpha, rho, relevance_sign  as in `FSR`
    floor  least weight of saliency: phi = relevance**alpha * (floor + (1 - floor) * saliency), both scaled to 0..1.
           The class token attends to few tokens, so the saliency of most scales to nearly 0; in eq. 3 a relevant token
           without saliency then counts nothing
    share  largest share of the budget for Focus, so that Scan gets the rest even if K_F exceeds the budget
    pull   how much Scan prefers evidence: it takes the token of the largest distance * ((1 - pull) + pull *
           (phi / max phi)**(1/3)); eq. 5 takes the largest distance

    No token is merged: Refine had no effect that could be measured (docs/results.md). An `auto` budget keeps its
    maximum, because the weighted distances say little about how many tokens a question needs. Memory is linear in N.
    """

    name: ClassVar[str] = "fsr_guided"

    alpha: float = 3.0
    rho: float = 0.9
    relevance_sign: Literal["+", "-"] = "+"
    floor: float = 0.2
    share: float = 0.25
    pull: float = 0.8

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, 100)
        for name in ("floor", "share", "pull"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("rho", self.rho, 1e-6, 1)
        check_sign("relevance_sign", self.relevance_sign)

    def priority(self, sample: VisualTokens) -> Tensor:
        """phi, [N] fp64."""
        phi = self.floor + (1 - self.floor) * minmax(sample.saliency.unsqueeze(0))
        if sample.relevance is not None:
            signed = -sample.relevance if self.relevance_sign == "-" else sample.relevance
            phi = phi * minmax(signed.unsqueeze(0)) ** self.alpha
        return phi[0]

    def _comparisons(self, n: int, k: int) -> int:
        return ROW_COST * n * k

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        phi = self.priority(sample)
        order = focus_order(phi.unsqueeze(0))
        wanted = int(focus_wanted(phi.unsqueeze(0), order, self.rho))
        focus = order[0, : min(wanted, max(1, int(self.share * k)))]
        scan = weighted_farthest(unit_keys(sample), focus, self._weight(phi), k - len(focus))
        return replace(kept(sample, focus=focus, scan=scan, priority=phi), focus_wanted=wanted)

    def _weight(self, phi: Tensor) -> Tensor:
        evidence = phi / phi.max().clamp(min=torch.finfo(torch.float64).tiny)
        return (1 - self.pull) + self.pull * evidence.pow(1 / 3)
