"""A KV pool behind the library's cache interface: one batched forward pass over sequences of different lengths.

Every layer has one tensor of slots. Before a forward pass the engine says to which slots the new keys and values go,
and which slots each row reads. Rows are aligned at their ends and padded on the left. The model sees an ordinary
left-padded batch, and the library builds the masks for the attention that it uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

__all__ = ["BatchLayout", "PooledCache"]


@dataclass
class BatchLayout:
    """One forward pass over B rows of T new tokens each. Every row reads S tokens.

    Attributes:
        write: [n] slots of the new tokens, row by row, without padding.
        new: [n] indices of these tokens among the B * T tokens; None if there is no padding.
        read: [B, S] slots that each row reads, its new tokens included; 0 pads on the left.
        length: T.
    """

    write: Tensor
    new: Tensor | None
    read: Tensor
    length: int


class _PooledLayer(CacheLayerMixin):
    """Keys and values [slots + 1, heads, width] of one layer."""

    def __init__(self, cache: PooledCache, slots: int) -> None:
        super().__init__()
        self._cache, self._slots = cache, slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self._slots + 1, states.shape[1], states.shape[3])
            pool = torch.empty(shape, dtype=states.dtype, device=states.device)
            pool[0] = 0  # padding reads it with weight 0, so it must be finite
            setattr(self, name, pool)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write_and_read(self.keys, key_states), self._write_and_read(self.values, value_states)

    def _write_and_read(self, pool: Tensor | None, states: Tensor) -> Tensor:
        """Writes states [B, heads, T, width]; returns [B, heads, S, width]."""
        assert pool is not None
        layout = self._cache.layout
        tokens = states.transpose(1, 2).flatten(0, 1)
        pool.index_copy_(0, layout.write, tokens if layout.new is None else tokens[layout.new])
        return pool.index_select(0, layout.read.flatten()).unflatten(0, layout.read.shape).transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.layout.read.shape[1], 0

    def get_seq_length(self) -> int:
        return self._cache.layout.read.shape[1] - self._cache.layout.length

    def get_max_length(self) -> int:
        return self._slots


class PooledCache(Cache):
    """The pool of all layers. `layout` says what the next forward pass writes and reads."""

    def __init__(self, layers: int, slots: int) -> None:
        empty = torch.zeros((0, 0), dtype=torch.long)
        self.layout = BatchLayout(empty.flatten(), None, empty, 0)
        super().__init__(layers=[_PooledLayer(self, slots) for _ in range(layers)])
