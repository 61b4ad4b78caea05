"""Visual saliency (arXiv 2602.05809, eq. 1), read off one block of a tower while the tower keeps its fast attention.

The block's queries and keys are computed again from its input. Only the rows or sums that saliency needs are formed, in
single precision, and a bounded number of them at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Recorder", "attention_received", "cls_attention", "self_attention_received"]

_CHUNK_NUMBERS = 2**25  # attention weights held at a time: 128 MiB in single precision


class Recorder:
    """Input and output of one block during a forward pass of this thread. Only one pass runs at a time.

    Attributes:
        input, output: hidden states before and after the block.
        options: the block's keyword arguments.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block, self._lock = block, threading.Lock()
        self.input: Tensor
        self.output: Tensor
        self.options: dict[str, Any] = {}

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Inside this context a forward pass of the tower fills the attributes; afterwards they are cleared."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.input = args[0] if args else kwargs["hidden_states"]
            self.options = kwargs
            self.output = output[0] if isinstance(output, tuple) else output

        with self._lock:
            handle = self._block.register_forward_hook(hook, with_kwargs=True)
            try:
                yield self
            finally:
                handle.remove()
                self.__dict__.pop("input", None)
                self.__dict__.pop("output", None)
                self.options = {}


def _heads(block: Any, hidden: Tensor, rows: slice) -> tuple[Tensor, Tensor, float]:
    """Queries [B, H, rows, d] and keys [B, H, N, d] of a ViT's block in fp32, and the attention's scale."""
    if hasattr(block, "self_attn"):  # CLIP, SigLIP
        attention, normed = block.self_attn, block.layer_norm1(hidden)
    else:  # InternViT
        attention, normed = block.attention, block.layernorm_before(hidden)
    query, keys = attention.q_proj(normed[:, rows]), attention.k_proj(normed)
    if hasattr(attention, "q_norm"):
        query, keys = attention.q_norm(query), attention.k_norm(keys)
    shape = (attention.num_heads, attention.head_dim)
    query, keys = (part.unflatten(2, shape).transpose(1, 2).float() for part in (query, keys))
    return query, keys, float(attention.head_dim) ** -0.5


def cls_attention(block: Any, hidden: Tensor) -> Tensor:
    """Attention that CLS, the first token, pays to each patch; mean over heads. ``[B, 1 + N, D] -> [B, N]`` fp32."""
    query, keys, scale = _heads(block, hidden, slice(0, 1))
    return (query @ keys.transpose(2, 3) * scale).softmax(-1).mean(1)[:, 0, 1:]


def self_attention_received(block: Any, hidden: Tensor) -> Tensor:
    """Attention that each token receives in a block without CLS. ``[B, N, D] -> [B, N]`` fp32."""
    query, keys, scale = _heads(block, hidden, slice(None))
    return torch.stack([attention_received(q, k, scale) for q, k in zip(query, keys, strict=True)])


def attention_received(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention that each of N keys receives; mean over heads and queries. Two ``[H, N, d]`` fp32 -> ``[N]`` fp32."""
    heads, n, _ = query.shape
    received = query.new_zeros(n)
    for part in query.split(max(1, _CHUNK_NUMBERS // (heads * n)), dim=1):
        received += (part @ keys.transpose(1, 2) * scale).softmax(-1).sum((0, 1))
    return received / (heads * n)
