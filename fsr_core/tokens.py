"""The input and the output of a compressor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FOCUS", "SCAN", "CompressedTokens", "VisualTokens"]

FOCUS, SCAN = 0, 1
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one sample, and their scores.

    features   [N, D]  as the language model would receive them; fp32, fp16, bf16 or fp64
    keys       [N, Dk] the space in which similarity is measured; None: `features`
    saliency   [N]     >= 0, attention of the vision encoder to each token
    relevance  [N]     of each token to the instruction; None: not used

    Tokens are taken behind the projector. For FSR this is our reading; its paper does not say in which space `v` is.

    Raises ValueError that names the argument, for wrong ranks, lengths that differ, NaN or infinity, negative saliency,
    an empty sample, or tensors on different devices.
    """

    features: Tensor
    saliency: Tensor
    relevance: Tensor | None = None
    keys: Tensor | None = None

    def __post_init__(self) -> None:
        ranks = {"features": 2, "keys": 2, "saliency": 1, "relevance": 1}
        for name, rank in ranks.items():
            tensor = getattr(self, name)
            if tensor is None and name in ("keys", "relevance"):
                continue
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}; convert it first")
            if tensor.dim() != rank:
                shape = "[N, D]" if rank == 2 else "[N]"
                raise ValueError(f"{name}: expected shape {shape}, got {list(tensor.shape)}; pass one sample at a time")
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"{name}: expected fp32, fp16, bf16 or fp64, got {tensor.dtype}; pass .float()")
            if len(tensor) != len(self.features):
                raise ValueError(
                    f"{name}: has {len(tensor)} tokens but features has {len(self.features)}; pass one row per token"
                )
            if tensor.numel() == 0:
                raise ValueError(f"{name}: is empty; a sample needs at least one token of at least one dimension")
            if tensor.device != self.features.device:
                raise ValueError(f"{name}: is on {tensor.device} but features on {self.features.device}; move it")
            single = (
                tensor.float() if tensor.dtype == torch.float64 else tensor
            )  # vector_norm does not convert fp64 to fp32
            if not bool(torch.linalg.vector_norm(single, dtype=torch.float32).isfinite()):
                problem = "is too large for squares in fp32" if bool(tensor.isfinite().all()) else "has NaN or infinity"
                raise ValueError(f"{name}: {problem}; check the vision encoder's output and its dtype")
        if bool((self.saliency < 0).any()):
            raise ValueError("saliency: has negative values; pass attention weights or another score >= 0")

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, kw_only=True)
class CompressedTokens:
    """The K kept tokens of N, in raster order, and the reasons.

    features     [K, D]  dtype of the input
    index        [K]     int64, ascending source index
    stage        [K]     int64, FOCUS (0) or SCAN (1)
    merged_into  [N]     int64, source index of the anchor that absorbed a dropped token, else -1
    priority     [N]     fp32, phi of eq. 3
    focus_count          K_F after its clamp to 1..K
    focus_wanted         K_F before the clamp
    """

    features: Tensor
    index: Tensor
    stage: Tensor
    merged_into: Tensor
    priority: Tensor
    focus_count: int
    focus_wanted: int

    def __len__(self) -> int:
        return len(self.index)
