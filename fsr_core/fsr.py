"""Focus-Scan-Refine (arXiv 2602.05809): keep the evidence, cover the rest, lose as little as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsr_core.budget import Budget, Limits
from fsr_core.compressor import Compressor, check_batch
from fsr_core.focus import focus_order, focus_wanted, priority
from fsr_core.refine import absorbed, merge
from fsr_core.scan import Keys, scan
from fsr_core.tokens import FOCUS, SCAN, CompressedTokens, VisualTokens

__all__ = ["FSR"]


@dataclass(frozen=True)
class FSR(Compressor):
    """Focus on what is salient and relevant, scan for what is far from it, refine by merging.

    alpha, beta     exponents of relevance and saliency in phi (eq. 3)
    rho             share of the evidence at which Focus stops (eq. 4)
    kappa           dropped tokens merged, per scan token (eq. 8)
    relevance_sign  "+" as the paper writes, "-" as CDPruner found better for CLIP
    centre_keys     subtract the keys' mean before measuring similarity (arXiv 2608.30263)

    Defaults are the paper's. Raises ValueError for an option out of its range.
    """

    name: ClassVar[str] = "fsr"

    alpha: float = 3.0
    beta: float = 1.0
    rho: float = 0.9
    kappa: float = 1.0
    relevance_sign: Literal["+", "-"] = "+"
    centre_keys: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "kappa"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}; the paper uses 3, 1 and 1")
        if isinstance(self.rho, bool) or not isinstance(self.rho, int | float) or not 0 < self.rho <= 1:
            raise ValueError(f"rho: expected a share in (0, 1], got {self.rho!r}; the paper uses 0.9")
        if self.relevance_sign not in ("+", "-"):
            raise ValueError(f"relevance_sign: expected '+' or '-', got {self.relevance_sign!r}")
        if not isinstance(self.centre_keys, bool):
            raise ValueError(f"centre_keys: expected true or false, got {self.centre_keys!r}")

    def compress_batch(
        self, samples: Sequence[VisualTokens], budgets: Sequence[int | Budget]
    ) -> list[CompressedTokens]:
        """Samples of the same shapes run as one batch; see `Compressor.compress_batch`."""
        limits = [b.limits(len(s)) for s, b in zip(samples, check_batch(samples, budgets), strict=True)]
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            keys = sample.features if sample.keys is None else sample.keys
            groups[(keys.shape, keys.dtype, keys.device, sample.relevance is None)].append(i)
        results: dict[int, CompressedTokens] = {}
        for members in groups.values():
            kept = self._compress_equal([samples[i] for i in members], [limits[i] for i in members])
            results.update(zip(members, kept, strict=True))
        return [results[i] for i in range(len(samples))]

    def _compress_equal(self, samples: list[VisualTokens], limits: list[Limits]) -> list[CompressedTokens]:
        device, n = samples[0].features.device, len(samples[0])
        relevance = None
        if samples[0].relevance is not None:
            relevance = torch.stack([_given(s.relevance).float() for s in samples])
            relevance = -relevance if self.relevance_sign == "-" else relevance
        phi = priority(torch.stack([s.saliency for s in samples]), relevance, self.alpha, self.beta)
        order = focus_order(phi)
        wanted = focus_wanted(phi, order, self.rho)
        most = torch.tensor([limit.maximum for limit in limits], device=device)
        counts = torch.minimum(wanted, most)
        position = torch.arange(n, device=device)
        kept = torch.zeros_like(phi, dtype=torch.bool)
        kept.scatter_(1, order, position < counts.unsqueeze(1))
        focus = kept
        merged_into = torch.full_like(order, -1)
        if all(limit.minimum == n for limit in limits):
            kept = torch.ones_like(kept)
        elif bool((counts < most).any()):
            keys = [s.features if s.keys is None else s.keys for s in samples]
            stacked = torch.stack(keys) if len(keys) > 1 else keys[0].unsqueeze(0)  # one sample's are not copied
            least = torch.tensor([limit.minimum for limit in limits], device=device)
            radius = torch.tensor([limit.radius for limit in limits], device=device)
            found = scan(Keys(stacked, self.centre_keys), order[:, : int(counts.max())], counts, least, most, radius)
            kept = focus | found.chosen
            scan_counts = found.chosen.sum(1)
            merged_into = absorbed(kept, found.anchor, found.similarity, scan_counts, self.kappa)
        return [
            _result(sample.features, *rows)
            for sample, *rows in zip(
                samples, kept, focus, merged_into, phi, counts.tolist(), wanted.tolist(), strict=True
            )
        ]


def _given(tensor: Tensor | None) -> Tensor:
    if tensor is None:  # pragma: no cover - samples are grouped by whether they have it
        raise ValueError("samples: some have relevance and some not within one group")
    return tensor


def _result(
    features: Tensor, kept: Tensor, focus: Tensor, merged_into: Tensor, phi: Tensor, count: int, wanted: int
) -> CompressedTokens:
    index = kept.nonzero().squeeze(1)
    rows = features if len(index) == len(features) else features[index]
    anchors, values = merge(features, merged_into, phi)
    if len(anchors):
        rows[torch.searchsorted(index, anchors)] = values
    stage = torch.where(focus[index], FOCUS, SCAN)
    return CompressedTokens(rows, index, stage, merged_into, phi, count, wanted)
