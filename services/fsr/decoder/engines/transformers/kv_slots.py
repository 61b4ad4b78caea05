"""Which slots of the KV pool belong to which request, and which prefixes the pool holds already.

A slot holds the keys and values of one token in every layer. A request leases as many slots as its prompt and answer
can need, all in a row, so that attention reads them where they are. If its prompt begins with the same whole blocks of
text as an earlier prompt, the keys and values of these blocks are copied from there. The blocks of a request that has
ended stay until their slots are needed; the prefix that is unused for the longest time goes first.

If the free slots are not in a row, leases are moved together. Then no request waits while enough slots are free.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

__all__ = ["KVSlots", "SlotLease"]


@dataclass(eq=False, kw_only=True)
class SlotLease:
    """The slots of one request.

    Attributes:
        first: number of the first slot. The pool may move the lease whenever it makes another one.
        length: number of slots.
        filled: how many of them, the first ones, hold keys and values.
        cached: how many of them held keys and values from the beginning.
        keys: of the blocks that other requests may use, from the beginning of the prompt on.
    """

    first: int
    length: int
    filled: int
    cached: int = field(init=False)
    keys: list[bytes]

    def __post_init__(self) -> None:
        self.cached = self.filled


class KVSlots:
    """Leases `count` slots, numbered from 0.

    Args:
        copy: copies the keys and values of slots, by the first slot to read, the first one to write, and their number.
        block: number of tokens in a block.
    """

    def __init__(self, count: int, copy: Callable[[int, int, int], None], block: int = 16) -> None:
        self.count, self._copy, self._block_size = count, copy, block
        self._leases: list[SlotLease] = []  # by their first slot
        self._unused: dict[
            SlotLease, None
        ] = {}  # prefixes that remain; the one unused for the longest time comes first
        self._blocks: dict[bytes, SlotLease] = {}  # a lease that begins with the text up to the end of this block
        self._free = count
        self.cached = 0  # slots of prefixes that no request uses

    def lease(self, total: int, head: Sequence[int], salt: str) -> SlotLease:
        """Slots for `total` tokens, the first of which are the text tokens `head`.

        Raises:
            MemoryError: running requests hold too many slots. Admission must not let this happen.
        """
        available = self._free + self.cached
        if total > available:
            raise MemoryError(f"{total} slots are needed, {available} are free")
        keys = list(self._keys(head, salt, total))
        source, cached = self._longest_prefix(keys)
        if source is not None and source in self._unused:
            self._unused[source] = self._unused.pop(source)
        while self._free < total:
            oldest = next(iter(self._unused))
            self._drop(oldest)
            if oldest is source:
                source, cached = None, 0
        lease = SlotLease(first=self._room(total), length=total, filled=cached, keys=keys)
        if source is not None:
            self._copy(source.first, lease.first, cached)
        insort(self._leases, lease, key=lambda lease: lease.first)
        self._free -= total
        return lease

    def share(self, lease: SlotLease) -> None:
        """Lets later requests use the prompt's first blocks. Their keys and values must be written by now."""
        if all(key in self._blocks for key in lease.keys):
            return
        shorter = {self._blocks[key] for key in lease.keys if key in self._blocks}
        self._blocks.update(dict.fromkeys(lease.keys, lease))
        for other in shorter & self._unused.keys():
            if self._blocks[other.keys[-1]] is lease:  # all that it held is in the longer prefix too
                self._drop(other)

    def release(self, lease: SlotLease) -> None:
        """Ends a lease. The blocks that later requests may use stay."""
        blocks = max((at for at, key in enumerate(lease.keys, 1) if self._blocks.get(key) is lease), default=0)
        kept = blocks * self._block_size
        self._free += lease.length - kept
        lease.keys, lease.length, lease.filled = lease.keys[:blocks], kept, kept
        self._unused[lease] = None
        self.cached += kept
        if not kept:
            self._drop(lease)

    def _drop(self, lease: SlotLease) -> None:
        """Frees the slots of a prefix that no request uses."""
        for key in lease.keys:
            if self._blocks.get(key) is lease:
                del self._blocks[key]
        del self._unused[lease]
        self._leases.remove(lease)
        self._free += lease.length
        self.cached -= lease.length

    def _longest_prefix(self, keys: Sequence[bytes]) -> tuple[SlotLease | None, int]:
        """A lease that begins with as many of these blocks as possible, and the number of their tokens."""
        for count in range(len(keys), 0, -1):
            lease = self._blocks.get(keys[count - 1])
            if lease is not None:
                return lease, count * self._block_size
        return None, 0

    def _room(self, total: int) -> int:
        """The first of `total` free slots in a row. Moves leases towards the first slot if there are none."""
        end = 0
        for lease in self._leases:
            if lease.first - end >= total:
                return end
            end = lease.first + lease.length
        if self.count - end >= total:
            return end
        end = 0
        for lease in self._leases:
            if lease.first - end >= total:
                return end
            if lease.first > end:
                self._copy(lease.first, end, lease.filled)
                lease.first = end
            end += lease.length
        return end

    def _keys(self, head: Sequence[int], salt: str, total: int) -> Iterator[bytes]:
        """Keys of the whole blocks of `head`.

        A request's last token is in none of them, because the first answer token is computed from it. The content of
        a block depends on all tokens before it, so its key is a digest of its tokens and of the key before it.
        """
        key = blake2b(salt.encode()).digest()
        for first in range(0, min(len(head), total - 1) - self._block_size + 1, self._block_size):
            key = blake2b(key + array("q", head[first : first + self._block_size]).tobytes()).digest()
            yield key
