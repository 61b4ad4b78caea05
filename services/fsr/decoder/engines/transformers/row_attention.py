"""Attention of several sequences in one forward pass, each over its own keys and values where they are in the pool.

The tokens of all sequences stand one after another in a batch of one, without padding. So a linear layer sees all of
them as one matrix, and only attention must know where a sequence begins. The library calls it by name: it is
registered beside the library's own implementations, with a function that makes its masks. Outside of :func:`attending`
it does what the library's SDPA does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

__all__ = ["Row", "attending", "use_row_attention"]

_NAME = "fsr_rows"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # change the scores in ways that SDPA cannot
_rows: ContextVar[Sequence[Row] | None] = ContextVar("rows", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence in a forward pass.

    Attributes:
        start: place of its first new token among all tokens of the pass.
        count: number of its new tokens.
        past: number of its tokens before them.
        slot: its first slot in the pool; the others follow.
    """

    start: int
    count: int
    past: int
    slot: int


@contextmanager
def attending(rows: Sequence[Row]) -> Iterator[None]:
    """The forward pass in this block, in this thread, is one over `rows`."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def use_row_attention(model: nn.Module) -> None:
    """Lets a model of the library attend row by row."""
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _masks)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = _NAME


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends from queries [1, heads, T, width] to keys and values [1, groups, slots, width]: [1, T, heads, width]."""
    rows = _rows.get()
    if rows is None:
        library: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return library
    for name in _UNKNOWN:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"model: its attention uses {name}, which the transformers engine does not know")
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    # [groups, heads of a group, T, width]: the heads of a group read the same keys, and nothing is repeated
    query, key, value = query[0].unflatten(0, (key.shape[1], -1)), key[0], value[0]
    for row, mask in zip(rows, attention_mask, strict=True):
        new, kept = slice(row.start, row.start + row.count), slice(row.slot, row.slot + row.past + row.count)
        keys, values = key[:, kept], value[:, kept]
        if row.count == 1:  # the heads of a group are the queries of one head
            attended = scaled_dot_product_attention(
                query[None, :, :, row.start], keys[None], values[None], mask, scale=scaling
            )
            out[0, row.start] = attended.flatten(0, 2)
        else:
            attended = scaled_dot_product_attention(
                query[:, :, new],
                keys.unsqueeze(1).expand(-1, query.shape[1], -1, -1),
                values.unsqueeze(1).expand(-1, query.shape[1], -1, -1),
                mask,
                scale=scaling,
                is_causal=mask is None,
            )
            out[0, new] = attended.flatten(0, 1).transpose(0, 1)
    return out, None


def _masks(*, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Any:
    """For each row what to add to its scores [count, past + count]; None: nothing but causality, from the first token.

    `mask_function` says whether a query sees a key, by their places in the sequence; it knows sliding windows.
    """
    rows = _rows.get()
    if rows is None:
        return sdpa_mask(mask_function=mask_function, **kwargs)
    return [_mask(row, mask_function, kwargs["device"], kwargs["dtype"]) for row in rows]


def _mask(row: Row, mask_function: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if mask_function is causal_mask_function and (row.count == 1 or not row.past):
        return None
    keys = torch.arange(row.past + row.count, device=device)
    first = torch.zeros((), dtype=torch.int64, device=device)
    seen = mask_function(first, first, keys[row.past :].unsqueeze(1), keys)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
