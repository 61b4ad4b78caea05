"""Random selection: the floor any method must clear."""

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
    """Keeps tokens uniformly at random, the same ones for the same sample and `seed` whatever the batch."""

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        # The picture enters the seed, so that different ones lose different places: by which tokens are the most
        # salient, because the last bits of a score depend on the batch in which it was computed.
        content = zlib.crc32(by_falling(sample.saliency)[:4].cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(content ^ (int(self.seed) * 0x9E3779B1 & 0xFFFFFFFF))
        index = torch.randperm(len(sample), generator=generator)[:k]
        return kept(sample, scan=index.to(sample.features.device))
