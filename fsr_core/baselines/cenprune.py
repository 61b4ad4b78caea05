"""Cen-Prune (arXiv 2608.30263): diversity between centred tokens, weighted by how distinct a token is uncentred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.baselines.divprune import most_isolated
from fsr_core.checks import check_choice, check_sign
from fsr_core.focus import minmax
from fsr_core.greedy import pivots, weighted_farthest
from fsr_core.keys import Keys
from fsr_core.one_by_one import ROW_COST, OneByOne, centred_keys, kept, raw_keys, relevance_weight, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["CenPrune"]


@dataclass(frozen=True, kw_only=True)
class CenPrune(OneByOne):
    """CDPruner or DivPrune with similarities of centred keys (eqs. 3-4), weighted by distinctiveness g (eqs. 5-6).

    selector        "cdpruner": greedy MAP of a DPP with the kernel diag(r g) S diag(r g) (eq. 8); "divprune": the token
                    of the largest g * distance to the chosen ones (eq. 7), after DivPrune's own first token
    relevance_sign  of r, for "cdpruner", as in `CDPruner`

    S are cosines of the keys less their mean. g is a token's mean cosine to the others, negated, from the keys as they
    are, and min-max scaled within the sample (eq. 11). Centring alone is worse than neither, says the paper (table 5):
    it takes away that the plain keys prefer distinct tokens.

    Departures: in Qwen-VL the paper measures before the patch merger and scales each dimension first (eqs. 9-10, 12).
    Here keys come from behind the merger, whose geometry the paper finds like LLaVA's (table A1), so they are only
    centred. A constant g becomes ones, and r is scaled as in `CDPruner`. A token with g = 0 has no volume; it is taken
    last.
    """

    name: ClassVar[str] = "cenprune"

    selector: Literal["cdpruner", "divprune"] = "cdpruner"
    relevance_sign: Literal["+", "-"] = "+"

    def __post_init__(self) -> None:
        check_choice("selector", self.selector, ("cdpruner", "divprune"))
        check_sign("relevance_sign", self.relevance_sign)

    def _comparisons(self, n: int, k: int) -> int:
        return 2 * ROW_COST * n * k if self.selector == "cdpruner" else n * (n + ROW_COST * k)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        centred, distinct = centred_keys(sample), _distinctiveness(unit_keys(sample))
        if self.selector == "cdpruner":
            quality = relevance_weight(sample, self.relevance_sign) * distinct
            return kept(sample, scan=pivots(centred, quality, k), priority=quality)
        first = most_isolated(Keys(raw_keys(sample).unsqueeze(0), centre=True))
        rest = weighted_farthest(centred, first, distinct, k - 1)
        return kept(sample, scan=torch.cat([first, rest]), priority=distinct)


def _distinctiveness(unit: Tensor) -> Tensor:
    """g of eq. 5 from the unit keys [N, Dk], min-max scaled: [N]. By eq. 6 a product with their mean is enough."""
    g = -(unit @ unit.mean(0))
    constant = g.max() - g.min() <= 1e-6  # but for rounding
    return torch.where(constant, torch.ones_like(g), minmax(g.unsqueeze(0))[0].float())
