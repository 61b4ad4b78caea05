"""Random selection: every method must be better than this."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from fsr_core.checks import check_whole
from fsr_core.one_by_one import OneByOne, by_falling, kept
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(OneByOne):
    """Keeps tokens uniformly at random: the same ones for the same sample and `seed`, in any batch."""

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)

    def _comparisons(self, n: int, k: int) -> int:
        return 0

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        # The seed depends on the picture, so that different pictures lose different places. It takes the indices of the
        # most salient tokens, because the last bits of the scores depend on the batch that computed them.
        content = zlib.crc32(by_falling(sample.saliency)[:4].cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(content ^ (int(self.seed) * 0x9E3779B1 & 0xFFFFFFFF))
        index = torch.randperm(len(sample), generator=generator)[:k]
        return kept(sample, scan=index.to(sample.features.device))
