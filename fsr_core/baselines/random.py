"""Random selection: the floor any method must clear."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from fsr_core.baselines.common import OneByOne, check_whole, kept
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(OneByOne):
    """Keeps tokens uniformly at random, the same ones for the same sample and `seed` whatever the batch."""

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        # The sample's own content enters the seed, so that different pictures lose different places.
        content = zlib.crc32(sample.saliency.float().cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(content ^ (int(self.seed) * 0x9E3779B1 & 0xFFFFFFFF))
        index = torch.randperm(len(sample), generator=generator)[:k]
        return kept(sample, scan=index.to(sample.features.device))
