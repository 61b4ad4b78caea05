"""Which slots of the KV pool belong to which request, and which prefixes the pool holds already.

A slot holds the keys and values of one token in every layer. A request leases as many slots as its prompt and answer
can need. If its prompt begins with the same whole blocks of text as an earlier prompt, it shares the slots of these
blocks. A block that no request uses stays until its slots are needed; the block that is unused for the longest time
goes first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

__all__ = ["KVSlots", "SlotLease"]


@dataclass
class _Block:
    slots: list[int]
    users: int = 1


@dataclass
class SlotLease:
    """The slots of one request.

    Attributes:
        slots: in the order of the request's tokens.
        cached: number of tokens at the beginning whose keys and values are in the pool already.
        keys: of the blocks that the request may share, from the beginning of its prompt on.
        shared: how many of these blocks, the first ones, it does share.
    """

    slots: list[int]
    cached: int
    keys: list[bytes]
    shared: int = 0


class KVSlots:
    """Leases `count` slots, numbered from 1. No token is written to slot 0: padded rows read it."""

    def __init__(self, count: int, block: int = 16) -> None:
        self.count, self._block_size = count, block
        self._free = list(range(count, 0, -1))
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()  # the block unused for the longest time comes first
        self._unused = 0

    @property
    def cached(self) -> int:
        """Slots of blocks that no request uses."""
        return self._block_size * self._unused

    def lease(self, total: int, head: Sequence[int], salt: str) -> SlotLease:
        """Slots for `total` tokens, the first of which are the text tokens `head`.

        Raises:
            MemoryError: running requests hold too many slots. Admission must not let this happen.
        """
        lease = SlotLease([], 0, list(self._keys(head, salt, total)))
        for key in lease.keys:
            block = self._blocks.get(key)
            if block is None:
                break
            self._unused -= block.users == 0
            block.users += 1
            lease.slots += block.slots
            lease.shared += 1
        lease.cached = len(lease.slots)
        needed = total - lease.cached
        missing, available = needed - len(self._free), len(self._free) + self.cached
        if needed > available:
            self.release(lease)
            raise MemoryError(f"{needed} slots are needed, {available} are free")
        unused = (key for key, block in self._blocks.items() if block.users == 0)
        for key in list(islice(unused, max(0, -(-missing // self._block_size)))):
            self._free += self._blocks.pop(key).slots
            self._unused -= 1
        lease.slots += [self._free.pop() for _ in range(needed)]
        return lease

    def share(self, lease: SlotLease) -> None:
        """Lets later requests share the prompt's first blocks. Their keys and values must be written by now."""
        for key in lease.keys[lease.shared :]:
            if key in self._blocks:  # another request has shared the same block meanwhile: the rest stays private
                return
            first = lease.shared * self._block_size
            self._blocks[key] = _Block(lease.slots[first : first + self._block_size])
            lease.shared += 1

    def release(self, lease: SlotLease) -> None:
        """Ends a lease. The blocks that it shared stay for other requests."""
        for key in reversed(lease.keys[: lease.shared]):  # so that the end of a prefix goes before its beginning
            block = self._blocks[key]
            block.users -= 1
            self._unused += block.users == 0
            self._blocks.move_to_end(key)
        self._free += lease.slots[lease.shared * self._block_size :]
        lease.slots, lease.keys, lease.shared = [], [], 0

    def _keys(self, head: Sequence[int], salt: str, total: int) -> Iterator[bytes]:
        """Keys of the whole blocks of `head`.

        A request's last token is in none of them, because the first answer token is computed from it. The content of
        a block depends on all tokens before it, so its key is a digest of its tokens and of the key before it.
        """
        key = blake2b(salt.encode()).digest()
        for first in range(0, min(len(head), total - 1) - self._block_size + 1, self._block_size):
            key = blake2b(key + array("q", head[first : first + self._block_size]).tobytes()).digest()
            yield key
