"""Focus-Scan-Refine (arXiv 2602.05809): keep the evidence, cover the rest, lose as little as possible."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.budget import BudgetLike, Limits
from fsr_core.checks import check_number
from fsr_core.compressor import Compressor, as_budgets
from fsr_core.focus import focus_order, focus_wanted, priority
from fsr_core.refine import absorbed, merge
from fsr_core.scan import Keys, scan
from fsr_core.tokens import FOCUS, SCAN, CompressedTokens, VisualTokens

__all__ = ["FSR"]

CPU_BATCH = 2**22  # numbers in the keys of the samples that are computed together on CPU


@dataclass(frozen=True, kw_only=True)
class FSR(Compressor):
    """Focuses on salient and relevant tokens, scans for tokens far from them, refines by merging.

    alpha, beta     exponents of relevance and saliency in phi (eq. 3)
    rho             share of the evidence at which Focus stops (eq. 4)
    kappa           dropped tokens that are merged, per scan token (eq. 8)
    relevance_sign  "+" as in the paper; "-" worked better for CLIP in CDPruner
    centre_keys     subtract the keys' mean before measuring similarity (arXiv 2608.30263)

    Defaults are the paper's. Raises ValueError for an option out of range.
    """

    name: ClassVar[str] = "fsr"

    alpha: float = 3.0
    beta: float = 1.0
    rho: float = 0.9
    kappa: float = 1.0
    relevance_sign: Literal["+", "-"] = "+"
    centre_keys: bool = False

    def __post_init__(self) -> None:
        for name, default in (("alpha", 3), ("beta", 1), ("kappa", 1)):
            check_number(name, getattr(self, name), 0, 1e6, f"the paper uses {default}")
        check_number("rho", self.rho, 1e-9, 1, "the paper uses 0.9")
        if self.relevance_sign not in ("+", "-"):
            raise ValueError(f"relevance_sign: expected '+' or '-', got {self.relevance_sign!r}")
        if not isinstance(self.centre_keys, bool):
            raise ValueError(f"centre_keys: expected true or false, got {self.centre_keys!r}")

    def compress_batch(self, samples: Sequence[VisualTokens], budgets: Sequence[BudgetLike]) -> list[CompressedTokens]:
        """See `Compressor.compress_batch`. Samples of the same shapes run as one batch."""
        limits = [b.limits(len(s)) for s, b in zip(samples, as_budgets(samples, budgets), strict=True)]
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            keys = sample.features if sample.keys is None else sample.keys
            whole = limits[i].minimum == len(sample)  # everything is kept, so Scan is not needed
            shapes = (keys.shape, keys.dtype, keys.device, sample.features.shape, sample.features.dtype)
            groups[(*shapes, sample.relevance is None, sample.keys is None, whole)].append(i)
        results: dict[int, CompressedTokens] = {}
        for together in groups.values():
            size = _batch_size(samples[together[0]])
            for start in range(0, len(together), size):
                members = together[start : start + size]
                kept = self._compress_equal([samples[i] for i in members], [limits[i] for i in members])
                results.update(zip(members, kept, strict=True))
        return [results[i] for i in range(len(samples))]

    def _compress_equal(self, samples: list[VisualTokens], limits: list[Limits]) -> list[CompressedTokens]:
        n = len(samples[0])
        relevance = None
        if samples[0].relevance is not None:
            relevance = _stacked([_given(s.relevance).double() for s in samples])
            relevance = -relevance if self.relevance_sign == "-" else relevance
        phi = priority(_stacked([s.saliency.double() for s in samples]), relevance, self.alpha, self.beta)
        order = focus_order(phi)
        wanted = focus_wanted(phi, order, self.rho).tolist()
        counts = [min(k, limit.maximum) for k, limit in zip(wanted, limits, strict=True)]
        focus = _cut(order, counts)
        in_focus = torch.zeros_like(phi, dtype=torch.bool).scatter_(1, focus, True)
        sizes, kept, merged_into = counts, in_focus, torch.full_like(order, -1)
        features = _stacked([s.features for s in samples])
        if all(limit.minimum == n for limit in limits):
            sizes, kept = [n] * len(samples), torch.ones_like(in_focus)
        elif any(count < limit.maximum for count, limit in zip(counts, limits, strict=True)):
            keys = features if samples[0].keys is None else _stacked([_given(s.keys) for s in samples])
            scanned = scan(Keys(keys, self.centre_keys), focus, counts, limits)
            sizes = [f + s for f, s in zip(counts, scanned.counts, strict=True)]
            kept = in_focus.scatter(1, scanned.picks, True)
            # As many dropped tokens are merged as eq. 8 says, if there are so many.
            quotas = [min(int(self.kappa * s), n - size) for s, size in zip(scanned.counts, sizes, strict=True)]
            merged_into = absorbed(kept, scanned.anchor, scanned.similarity, quotas)
        return _results(features, kept, in_focus, merged_into, phi, sizes, counts, wanted)


def _batch_size(sample: VisualTokens) -> int:
    """How many samples like this one are computed together. On CPU that saves small operations, but large tensors then
    are copied, and leave the caches."""
    keys = sample.features if sample.keys is None else sample.keys
    return max(1, CPU_BATCH // keys.numel()) if keys.device.type == "cpu" else sys.maxsize


def _cut(order: Tensor, counts: list[int]) -> Tensor:
    """The first tokens of each row of [B, N], as many as `counts` says; a shorter one repeats its first token."""
    longest = max(counts)
    if min(counts) == longest:
        return order[:, :longest]
    inside = torch.arange(longest, device=order.device) < torch.tensor(counts, device=order.device).unsqueeze(1)
    return torch.where(inside, order[:, :longest], order[:, :1])


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:  # pragma: no cover - samples are grouped by what they have
        raise ValueError("samples: some have relevance or keys and some not within one group")
    return tensor


def _stacked(tensors: list[Tensor]) -> Tensor:
    """The tensors as one of [B, ...]; a single tensor is not copied."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _results(
    features: Tensor,
    kept: Tensor,
    focus: Tensor,
    merged_into: Tensor,
    phi: Tensor,
    sizes: list[int],
    counts: list[int],
    wanted: list[int],
) -> list[CompressedTokens]:
    """One result per sample, from the masks and scores [B, N] of a batch and its features [B, N, D]."""
    place = kept.flatten().nonzero().squeeze(1)
    rows = features.flatten(0, 1).index_select(0, place)
    anchors, values = merge(features, merged_into, phi)
    rows.index_copy_(0, torch.searchsorted(place, anchors), values)
    stage = torch.where(focus.flatten().index_select(0, place), FOCUS, SCAN)
    index = place % kept.shape[1] if len(kept) > 1 else place
    split = (part.split_with_sizes(sizes) for part in (rows, index, stage))
    parts = zip(*split, phi.float().unbind(), merged_into.unbind(), strict=True)
    return [
        CompressedTokens(
            features=kept_rows,
            index=kept_index,
            stage=stages,
            merged_into=merged,
            priority=priorities,
            focus_count=counts[i],
            focus_wanted=wanted[i],
        )
        for i, (kept_rows, kept_index, stages, priorities, merged) in enumerate(parts)
    ]
