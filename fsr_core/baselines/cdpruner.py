"""CDPruner (arXiv 2506.10967): a determinantal point process conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch

from fsr_core.focus import minmax
from fsr_core.one_by_one import ROW_COST, OneByOne, kept, unit_keys
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["CDPruner"]


@dataclass(frozen=True)
class CDPruner(OneByOne):
    """Greedy MAP (eq. 8, log-det) of a DPP with the kernel diag(r) L diag(r) (eq. 7), L_ij = cos(key_i, key_j) (eq. 3).

    relevance_sign  "+" as in the paper (eq. 5); "-" as in the authors' code for CLIP

    r is the relevance, min-max scaled (eq. 6). The greedy step is that of Chen et al. (arXiv 1709.05135, eqs. 4-6 and
    9, Algorithm 1): one row of the kernel and one Cholesky row per pick, memory K x N. Without relevance r is 1, and
    only diversity decides.

    Departures: 1e-6 is added to the scaled relevance (the authors' code adds it before it divides). Constant relevance
    becomes ones (eq. 6 is 0 / 0 then). Relevance is scaled within the sample (the code scales over the whole batch).
    Once K exceeds the rank of the keys, the remaining volume is zero, and the code divides by its square root and gets
    NaN; here the remaining tokens go by relevance, ties by index.
    """

    name: ClassVar[str] = "cdpruner"

    relevance_sign: Literal["+", "-"] = "+"

    def __post_init__(self) -> None:
        if self.relevance_sign not in ("+", "-"):
            raise ValueError(f"relevance_sign: expected '+' or '-', got {self.relevance_sign!r}")

    def _comparisons(self, n: int, k: int) -> int:
        return 2 * ROW_COST * n * k  # for each pick a row of the kernel, and the Cholesky rows of the picks before it

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        keys, n = unit_keys(sample), len(sample)
        relevance = torch.ones(n, device=keys.device)
        if sample.relevance is not None:
            signed = -sample.relevance if self.relevance_sign == "-" else sample.relevance
            relevance = minmax(signed.unsqueeze(0))[0].float() + 1e-6  # above zero, so that every token has some volume
        scaled = keys * relevance.unsqueeze(1)
        volume = scaled.square().sum(1)
        floor = 1e-10 * volume.max()
        cholesky = torch.zeros(k, n, device=keys.device)
        chosen: list[int] = []
        for step in range(k):
            pick = int(volume.argmax())
            if not volume[pick] > floor:
                remaining = relevance.clone()
                remaining[chosen] = -inf
                chosen += remaining.argsort(descending=True, stable=True)[: k - step].tolist()
                break
            chosen.append(pick)
            row = (scaled @ scaled[pick] - cholesky[:step, pick] @ cholesky[:step]) / volume[pick].sqrt()
            cholesky[step] = row
            volume = volume - row.square()
            volume[pick] = -inf
        return kept(sample, scan=torch.tensor(chosen, device=keys.device), priority=relevance)
