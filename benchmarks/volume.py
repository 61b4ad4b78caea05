"""The family of methods in which `tune_volume` looks for one of ours: a DPP with several weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsr_core import CompressedTokens, VisualTokens, register
from fsr_core.focus import minmax
from fsr_core.greedy import pivots
from fsr_core.one_by_one import OneByOne, centred_keys, kept, raw_keys, unit_keys

__all__ = ["FACTORS", "Volume", "register_variants"]

FACTORS = ("distance", "residual", "distinct", "saliency", "rank", "length")


@dataclass(frozen=True, kw_only=True)
class Volume(OneByOne):
    """Greedy MAP of a DPP with the kernel w_i cos_ij w_j, as `CDPruner` with another weight.

    w = (floor + (1 - floor) r**alpha) * the product of the factors below, each to its power, 0 for none. r is relevance
    scaled to 0..1, or 1 without relevance. A factor is scaled so that its largest value is 1.

    distance   of the unit key to the mean unit key
    residual   length of the key less the mean key
    distinct   mean cosine to the others, negated, scaled to 0..1 (g of arXiv 2608.30263)
    saliency   attention of the class token
    rank       share of the tokens with less attention; a single sink leaves it as it is
    length     of the key
    centre     cosines are those of keys less their mean

    `VolumeFSR` is what was chosen of it.
    """

    name: ClassVar[str] = "volume"

    floor: float = 0.2
    alpha: float = 3.0
    distance: float = 0.0
    residual: float = 0.0
    distinct: float = 0.0
    saliency: float = 0.0
    rank: float = 0.0
    length: float = 0.0
    centre: bool = False

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        weight = self.weight(sample).float()
        unit = centred_keys(sample) if self.centre else unit_keys(sample)
        return kept(sample, scan=pivots(unit, weight, k), priority=weight)

    def weight(self, sample: VisualTokens) -> Tensor:
        """w of each token, [N] fp64."""
        weight = torch.ones(len(sample), dtype=torch.float64)
        if sample.relevance is not None:
            weight = self.floor + (1 - self.floor) * minmax(sample.relevance.unsqueeze(0))[0] ** self.alpha
        for name in FACTORS:
            if power := getattr(self, name):
                values = _factor(name, sample).double()
                weight = weight * (values / values.max().clamp(min=1e-30)).clamp(min=1e-6) ** power
        return weight


def _factor(name: str, sample: VisualTokens) -> Tensor:
    """The values of a factor of `Volume`, [N]."""
    unit, keys = unit_keys(sample), raw_keys(sample).float()
    if name == "distance":
        return torch.linalg.vector_norm(unit - unit.mean(0), dim=1)
    if name == "residual":
        return torch.linalg.vector_norm(keys - keys.mean(0), dim=1)
    if name == "distinct":
        return minmax(-(unit @ unit.mean(0)).unsqueeze(0))[0]
    if name == "saliency":
        return sample.saliency
    if name == "rank":
        return (sample.saliency.unsqueeze(1) > sample.saliency).double().mean(1)
    return torch.linalg.vector_norm(keys, dim=1)


def register_variants() -> None:
    """Makes `Volume` known by name, as `volume`."""
    register("volume", Volume)
