"""The base class of methods that treat one sample at a time, and helpers for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fsr_core.budget import Budget, BudgetLike
from fsr_core.compressor import Compressor, as_budgets
from fsr_core.focus import minmax
from fsr_core.norms import sized
from fsr_core.tokens import FOCUS, SCAN, CompressedTokens, VisualTokens

__all__ = ["ROW_COST", "OneByOne", "by_falling", "centred_keys", "kept", "raw_keys", "relevance_weight", "unit_keys"]

ROW_COST = (
    8  # a row of similarities alone costs as much as so many rows of a large matrix product, which reads keys once
)


class OneByOne(Compressor):
    """A method that treats every sample by itself. A subclass implements `_select`: it keeps k tokens, 1 <= k < N."""

    def compress_batch(self, samples: Sequence[VisualTokens], budgets: Sequence[BudgetLike]) -> list[CompressedTokens]:
        pairs = zip(samples, as_budgets(samples, budgets), strict=True)
        return [self._keep(sample, budget.limits(len(sample)).maximum) for sample, budget in pairs]

    def _keep(self, sample: VisualTokens, k: int) -> CompressedTokens:
        if k == len(sample):
            everything = torch.arange(k, device=sample.features.device)
            return kept(sample, scan=everything, features=sample.features)
        return self._select(sample, k)

    def comparisons(self, tokens: int, budget: Budget) -> int:
        k = budget.limits(tokens).maximum
        return 0 if k == tokens else self._comparisons(tokens, k)

    def _comparisons(self, n: int, k: int) -> int:
        """Of `_select`, to keep k of n tokens."""
        return n * k

    @abstractmethod
    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens: ...


def kept(
    sample: VisualTokens,
    *,
    focus: Tensor | None = None,
    scan: Tensor | None = None,
    features: Tensor | None = None,
    merged_into: Tensor | None = None,
    priority: Tensor | None = None,
) -> CompressedTokens:
    """A result in raster order.

    focus, scan  int64, indices of the kept tokens: for their own importance, and for what they add; in any order
    features     [K, D] rows of focus, then of scan; None: the sample's own rows
    merged_into  [N] as in `CompressedTokens`; None: nothing was merged
    priority     [N] the score by which the method ranks; None: all ones
    """
    n, device = len(sample), sample.features.device
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    focus, scan = (nothing if part is None else part for part in (focus, scan))
    chosen = torch.cat([focus, scan])
    order = chosen.argsort()
    index = chosen[order]
    return CompressedTokens(
        features=sample.features[index] if features is None else features[order].to(sample.features.dtype),
        index=index,
        stage=torch.where(order < len(focus), FOCUS, SCAN),
        merged_into=torch.full((n,), -1, dtype=torch.int64, device=device) if merged_into is None else merged_into,
        priority=torch.ones(n, device=device) if priority is None else priority.float(),
        focus_count=len(focus),
        focus_wanted=len(focus),
    )


def by_falling(scores: Tensor) -> Tensor:
    """Indices by descending score, ties by index. [N] -> [N] int64."""
    return scores.double().argsort(descending=True, stable=True)


def raw_keys(sample: VisualTokens) -> Tensor:
    """The sample's keys, [N, Dk]: the space in which similarity is measured."""
    return sample.features if sample.keys is None else sample.keys


def unit_keys(sample: VisualTokens) -> Tensor:
    """The sample's keys at unit length, fp32 [N, Dk]; a zero key stays zero."""
    keys, norm = sized(raw_keys(sample))
    return keys / torch.where(norm > 0, norm, 1.0).unsqueeze(1)


def centred_keys(sample: VisualTokens) -> Tensor:
    """The sample's keys without their mean, at unit length, fp32 [N, Dk]; a token that equals the mean stays zero."""
    keys = raw_keys(sample).float()
    keys = keys / keys.abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # so that all can be squared
    lengths = torch.linalg.vector_norm(keys, dim=1)
    keys = keys - keys.mean(0)
    residuals = torch.linalg.vector_norm(keys, dim=1)
    # What rounding leaves of a token that equals the mean has no direction.
    direction = residuals > 1e-6 * lengths.max()
    return torch.where(direction.unsqueeze(1), keys / residuals.clamp(min=1e-30).unsqueeze(1), 0.0)


def relevance_weight(sample: VisualTokens, sign: str) -> Tensor:
    """Relevance, min-max scaled, above zero, so that a token with this weight has some volume; ones without it. [N]"""
    if sample.relevance is None:
        return torch.ones(len(sample), device=sample.features.device)
    signed = -sample.relevance if sign == "-" else sample.relevance
    return minmax(signed.unsqueeze(0))[0].float() + 1e-6
