"""Random selection: the floor any method must clear."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fsr_core.budget import Budget
from fsr_core.compressor import Compressor, check_batch
from fsr_core.tokens import SCAN, CompressedTokens, VisualTokens

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Compressor):
    """Keeps tokens uniformly at random, the same ones for the same sample and `seed` whatever the batch.

    An `auto` budget keeps its maximum: chance has no evidence to stop at.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def compress_batch(
        self, samples: Sequence[VisualTokens], budgets: Sequence[int | Budget]
    ) -> list[CompressedTokens]:
        pairs = zip(samples, check_batch(samples, budgets), strict=True)
        return [self._one(sample, budget.limits(len(sample)).maximum) for sample, budget in pairs]

    def _one(self, sample: VisualTokens, k: int) -> CompressedTokens:
        n, device = len(sample), sample.features.device
        # The sample's own content enters the seed, so that different pictures lose different places.
        content = zlib.crc32(sample.saliency.float().cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(content ^ (int(self.seed) * 0x9E3779B1 & 0xFFFFFFFF))
        index = torch.randperm(n, generator=generator)[:k].sort().values.to(device)
        return CompressedTokens(
            features=sample.features if k == n else sample.features[index],
            index=index,
            stage=torch.full_like(index, SCAN),
            merged_into=torch.full((n,), -1, dtype=torch.int64, device=device),
            priority=torch.ones(n, device=device),
            focus_count=0,
            focus_wanted=0,
        )
