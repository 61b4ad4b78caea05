"""A KV pool behind the library's cache interface: one batched forward pass over requests of different lengths.

Every layer owns one tensor of places. Before a forward pass the engine says where the new keys and values go and
which places each row reads; rows are aligned at their ends and padded on the left, so to the model it looks like a
left-padded batch, and the library builds the masks for whatever attention it uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

__all__ = ["Layout", "PooledCache"]


@dataclass
class Layout:
    """One forward pass over B rows of T new tokens each, which read S tokens.

    Attributes:
        write: [n] places of the new tokens, row by row, without padding.
        new: [n] which of the B * T tokens they are; None where there is no padding.
        read: [B, S] places that each row reads, its new ones included; 0 pads on the left.
        fresh: T.
    """

    write: Tensor
    new: Tensor | None
    read: Tensor
    fresh: int


class _PooledLayer(CacheLayerMixin):
    """Keys and values [places + 1, heads, width] of one layer."""

    def __init__(self, cache: PooledCache, places: int) -> None:
        super().__init__()
        self._cache, self._places = cache, places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (self._places + 1, states.shape[1], states.shape[3])
            pool = torch.empty(shape, dtype=states.dtype, device=states.device)
            pool[0] = 0  # what padding reads has no weight, but must be finite
            setattr(self, name, pool)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._through(self.keys, key_states), self._through(self.values, value_states)

    def _through(self, pool: Tensor | None, states: Tensor) -> Tensor:
        """Writes states [B, heads, T, width] and reads [B, heads, S, width]."""
        assert pool is not None
        layout = self._cache.layout
        fresh = states.transpose(1, 2).flatten(0, 1)
        pool.index_copy_(0, layout.write, fresh if layout.new is None else fresh[layout.new])
        return pool.index_select(0, layout.read.flatten()).unflatten(0, layout.read.shape).transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.layout.read.shape[1], 0

    def get_seq_length(self) -> int:
        return self._cache.layout.read.shape[1] - self._cache.layout.fresh

    def get_max_length(self) -> int:
        return self._places


class PooledCache(Cache):
    """All layers. `layout` says what the next forward pass writes and reads."""

    def __init__(self, layers: int, places: int) -> None:
        empty = torch.zeros((0, 0), dtype=torch.long)
        self.layout = Layout(empty[0:0].flatten(), None, empty, 0)
        super().__init__(layers=[_PooledLayer(self, places) for _ in range(layers)])
