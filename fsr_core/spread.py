"""How a budget is spread over the tiles of a picture or the frames of a video.

``even``: every tile or frame gets the same share of the budget and is scored by itself, say 192 of 576 tokens in each
of five tiles. This is our reading: FSR's paper gives totals (960 of 2,880) and says nothing of tiles. ``free``: the
whole picture or video is one sample, so tokens go where the evidence is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Literal

import torch
from torch import Tensor

from fsr_core.backbones.features import ImageFeatures
from fsr_core.budget import Budget, BudgetLike
from fsr_core.compressor import Compressor
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["SPREADS", "Spread", "comparisons", "compress_images"]

Spread = Literal["even", "free"]
SPREADS = ("even", "free")


def compress_images(
    compressor: Compressor,
    images: Sequence[ImageFeatures],
    samples: Sequence[VisualTokens],
    budgets: Sequence[BudgetLike],
    spread: Spread = "even",
) -> list[CompressedTokens]:
    """The kept tokens of each image, computed as one batch. A budget is for a whole image.

    Raises ValueError for an unknown `spread` or a bad budget.
    """
    if spread not in SPREADS:
        raise ValueError(f"spread: {spread!r} is unknown; use {' or '.join(SPREADS)}")
    parts: list[VisualTokens] = []
    shares: list[Budget] = []
    members: list[list[Tensor | None]] = []
    for image, sample, budget in zip(images, samples, budgets, strict=True):
        total = Budget.of(budget)
        if spread == "free" or image.groups is None or total.limits(len(sample)).minimum == len(sample):
            members.append([None])
            parts.append(sample)
            shares.append(total)
            continue
        groups = [(image.groups == g).nonzero().flatten() for g in image.groups.unique().tolist()]
        split = _shares(total, [len(group) for group in groups])
        taken = [(group, share) for group, share in zip(groups, split, strict=True) if share is not None]
        members.append([group for group, _ in taken])
        parts += [_rows(sample, group) for group, _ in taken]
        shares += [share for _, share in taken]
    kept = iter(compressor.compress_batch(parts, shares))
    return [
        _joined([(group, next(kept)) for group in groups], len(sample))
        for groups, sample in zip(members, samples, strict=True)
    ]


def comparisons(compressor: Compressor, sizes: Sequence[int], budget: Budget, spread: Spread) -> int:
    """See `Compressor.comparisons`; of an image whose tiles or frames have these numbers of tokens."""
    if spread == "free" or len(sizes) == 1 or budget.limits(sum(sizes)).minimum == sum(sizes):
        return compressor.comparisons(sum(sizes), budget)
    shares = zip(sizes, _shares(budget, sizes), strict=True)
    return sum(compressor.comparisons(size, share) for size, share in shares if share is not None)


def _shares(budget: Budget, sizes: Sequence[int]) -> list[Budget | None]:
    """An equal share of the budget for each group; None for a group that gets nothing.

    The first groups get the remainder. What a small group cannot hold goes to the others.
    """
    limits = budget.limits(sum(sizes))
    maxima = _even(limits.maximum, sizes)
    if not budget.auto:
        return [Budget(tokens=share) if share else None for share in maxima]
    minima = _even(limits.minimum, maxima)
    return [
        replace(budget, min_tokens=max(1, low), max_tokens=high) if high else None
        for low, high in zip(minima, maxima, strict=True)
    ]


def _even(total: int, capacities: Sequence[int]) -> list[int]:
    """`total` in equal shares, none above its capacity."""
    shares = [0] * len(capacities)
    remaining = min(total, sum(capacities))
    while remaining:
        unfilled = [i for i, capacity in enumerate(capacities) if shares[i] < capacity]
        each, extra = divmod(remaining, len(unfilled))
        for turn, i in enumerate(unfilled):
            more = min(each + (turn < extra), capacities[i] - shares[i])
            shares[i] += more
            remaining -= more
    return shares


def _rows(sample: VisualTokens, group: Tensor) -> VisualTokens:
    """The sample's tokens of one group."""
    values = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return replace(sample, **{name: value[group] for name, value in values.items() if isinstance(value, Tensor)})


def _joined(parts: Sequence[tuple[Tensor | None, CompressedTokens]], n: int) -> CompressedTokens:
    """The results of an image's groups as one result over the image's `n` tokens, in raster order."""
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    device = parts[0][1].index.device
    merged = torch.full((n,), -1, dtype=torch.int64, device=device)
    priority = torch.zeros(n, device=device)
    index, stage, features = [], [], []
    for group, kept in parts:
        if group is None:  # pragma: no cover - an image has groups only, or is one part
            continue
        index.append(group[kept.index])
        stage.append(kept.stage)
        features.append(kept.features)
        priority[group] = kept.priority
        merged[group] = torch.where(kept.merged_into >= 0, group[kept.merged_into.clamp(min=0)], -1)
    order = torch.cat(index).argsort()
    return CompressedTokens(
        features=torch.cat(features)[order],
        index=torch.cat(index)[order],
        stage=torch.cat(stage)[order],
        merged_into=merged,
        priority=priority,
        focus_count=sum(kept.focus_count for _, kept in parts),
        focus_wanted=sum(kept.focus_wanted for _, kept in parts),
    )
