"""Which places of the KV pool belong to whom, and which prefixes are there already.

A place holds the keys and values of one token in every layer. A request takes as many as prompt and answer may need;
where its prompt begins with whole blocks of text that an earlier one began with too, it shares theirs. Blocks that
nobody uses stay until their room is needed, the longest unused going first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

__all__ = ["Lease", "Places"]


@dataclass
class _Block:
    places: list[int]
    users: int = 1


@dataclass
class Lease:
    """What one request holds.

    Attributes:
        places: in the order of the request's tokens.
        cached: tokens at its beginning whose keys and values are there.
        keys: of the blocks that it may share; those that it does share come first.
        shared: how many of them it does.
    """

    places: list[int]
    cached: int
    keys: list[bytes]
    shared: int = 0


class Places:
    """Hands out `count` places, numbered from 1. Place 0 is never written: it stands for nothing in padded batches."""

    def __init__(self, count: int, block: int = 16) -> None:
        self.count, self._size = count, block
        self._free = list(range(count, 0, -1))
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()  # the longest unused first
        self._unused = 0

    @property
    def cached(self) -> int:
        """Places of blocks that no request uses."""
        return self._size * self._unused

    def take(self, total: int, head: Sequence[int], salt: str) -> Lease:
        """Places for `total` tokens that begin with the text tokens `head`.

        Raises MemoryError where running requests hold the rest; who admits requests must not let that happen.
        """
        lease = Lease([], 0, list(self._keys(head, salt, total)))
        for key in lease.keys:
            block = self._blocks.get(key)
            if block is None:
                break
            self._unused -= block.users == 0
            block.users += 1
            lease.places += block.places
            lease.shared += 1
        lease.cached = len(lease.places)
        needed = total - lease.cached
        short, free = needed - len(self._free), len(self._free) + self.cached
        if needed > free:
            self.give_back(lease)
            raise MemoryError(f"{needed} places are needed, {free} are free")
        unused = (key for key, block in self._blocks.items() if block.users == 0)
        for key in list(islice(unused, max(0, -(-short // self._size)))):
            self._free += self._blocks.pop(key).places
            self._unused -= 1
        lease.places += [self._free.pop() for _ in range(needed)]
        return lease

    def share(self, lease: Lease) -> None:
        """Lets later requests share the head of this one, whose keys and values have been written."""
        for key in lease.keys[lease.shared :]:
            if key in self._blocks:  # another request wrote the same meanwhile; what follows is its own too
                return
            first = lease.shared * self._size
            self._blocks[key] = _Block(lease.places[first : first + self._size])
            lease.shared += 1

    def give_back(self, lease: Lease) -> None:
        """Ends a lease. What it shared stays for others."""
        for key in reversed(lease.keys[: lease.shared]):  # so that the end of a prefix goes before its beginning
            block = self._blocks[key]
            block.users -= 1
            self._unused += block.users == 0
            self._blocks.move_to_end(key)
        self._free += lease.places[lease.shared * self._size :]
        lease.places, lease.keys, lease.shared = [], [], 0

    def _keys(self, head: Sequence[int], salt: str, total: int) -> Iterator[bytes]:
        """Keys of the whole blocks of a head; the last token of a request is never among them, so that there is always
        one left to compute the first answer token from.

        What a block holds depends on everything before it, so its key is a digest of its tokens and the key before it.
        """
        key = blake2b(salt.encode()).digest()
        for first in range(0, min(len(head), total - 1) - self._size + 1, self._size):
            key = blake2b(key + array("q", head[first : first + self._size]).tobytes()).digest()
            yield key
