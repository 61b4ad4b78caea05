"""The KV pool behind the library's cache interface."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

__all__ = ["PooledCache"]


class _PooledLayer(CacheLayerMixin):
    """Keys and values [1, heads, slots, width] of one layer."""

    def __init__(self, cache: PooledCache, slots: int) -> None:
        super().__init__()
        self._cache, self._slots = cache, slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for name, states in (("keys", key_states), ("values", value_states)):
            pool = states.new_empty((1, states.shape[1], self._slots, states.shape[3]))
            setattr(self, name, pool)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the new tokens [1, heads, T, width] into their slots; returns the whole pool, nothing is copied."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = cast("Tensor", self.keys), cast("Tensor", self.values)  # None only before they are initialised
        keys.index_copy_(2, self._cache.new_slots, key_states)
        values.index_copy_(2, self._cache.new_slots, value_states)
        return keys, values

    def copy(self, source: int, target: int, count: int) -> None:
        """Copies `count` slots. Both ranges may overlap."""
        if self.is_initialized:
            for pool in (cast("Tensor", self.keys), cast("Tensor", self.values)):
                pool[:, :, target : target + count] = pool[:, :, source : source + count].clone()

    # The library asks for lengths to build masks. Those of this engine's attention come from its rows.
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._slots


class PooledCache(Cache):
    """The pool of all layers. Before a forward pass `new_slots` [T] says where the keys and values of its tokens go."""

    def __init__(self, layers: int, slots: int) -> None:
        self.new_slots = torch.zeros(0, dtype=torch.int64)
        super().__init__(layers=[_PooledLayer(self, slots) for _ in range(layers)])

    def copy_slots(self, source: int, target: int, count: int) -> None:
        """Copies the keys and values of `count` slots in all layers."""
        for layer in self.layers:
            cast("_PooledLayer", layer).copy(source, target, count)
