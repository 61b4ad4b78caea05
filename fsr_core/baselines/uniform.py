"""Spatial pooling: the picture at a lower resolution, independent of its content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fsr_core.baselines.regions import region_of_tokens
from fsr_core.one_by_one import OneByOne, kept
from fsr_core.segments import segment_sum
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(OneByOne):
    """Cuts the grid into K regions and keeps one token of each: the region's mean, or its middle token.

    pool  true: average pooling, the standard reduction of a grid; false: plain subsampling. In both cases the kept
          token has the place of its region's middle token.
    """

    name: ClassVar[str] = "uniform"

    pool: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.pool, bool):
            raise ValueError(f"pool: expected true or false, got {self.pool!r}")

    def _comparisons(self, n: int, k: int) -> int:
        return 0

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        device = sample.features.device
        region = region_of_tokens(len(sample), k, device)
        order = region.argsort(stable=True)
        sizes = region.bincount(minlength=k)
        middle = order[sizes.cumsum(0) - sizes + sizes // 2]
        if not self.pool:
            return kept(sample, scan=middle)
        total = segment_sum(sample.features.float(), region, k)
        merged_into = middle[region]
        merged_into[middle] = -1
        return kept(sample, scan=middle, features=total / sizes.unsqueeze(1), merged_into=merged_into)
