"""Which places of the KV pool belong to whom, and which prefixes are there already.

A place holds the keys and values of one token in every layer. A request takes as many as prompt and answer may need;
where its prompt begins with whole blocks of text that an earlier one began with too, it shares theirs. Blocks that
nobody uses stay until their room is needed, the longest unused going first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Lease", "Places"]

# What a block holds depends on everything before it, so its key does: (key of the block before it or salt, tokens).
_Key = tuple[object, tuple[int, ...]]


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
    """

    places: list[int]
    cached: int
    head: Sequence[int]
    salt: str
    blocks: list[_Key] = field(default_factory=list)


class Places:
    """Hands out `count` places, numbered from 1. Place 0 is never written: it stands for nothing in padded batches."""

    def __init__(self, count: int, block: int = 16) -> None:
        self.count, self._size = count, block
        self._free = list(range(count, 0, -1))
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()  # the longest unused first
        self._unused = 0

    @property
    def cached(self) -> int:
        """Places of blocks that no request uses."""
        return self._size * self._unused

    def take(self, total: int, head: Sequence[int], salt: str) -> Lease:
        """Places for `total` tokens that begin with the text tokens `head`.

        Raises MemoryError where running requests hold the rest; who admits requests must not let that happen.
        """
        lease = Lease([], 0, head, salt)
        for key in self._keys(head, salt, total):
            block = self._blocks.get(key)
            if block is None:
                break
            self._unused -= block.users == 0
            block.users += 1
            lease.places += block.places
            lease.blocks.append(key)
        lease.cached = len(lease.places)
        needed = total - lease.cached
        while len(self._free) < needed:
            unused = next((key for key, block in self._blocks.items() if block.users == 0), None)
            if unused is None:
                self.give_back(lease)
                raise MemoryError(f"{needed} places are needed, {len(self._free)} are free")
            self._free += self._blocks.pop(unused).places
            self._unused -= 1
        lease.places += [self._free.pop() for _ in range(needed)]
        return lease

    def share(self, lease: Lease) -> None:
        """Lets later requests share the head of this one, whose keys and values have been written."""
        keys = list(self._keys(lease.head, lease.salt, len(lease.places)))
        for number in range(len(lease.blocks), len(keys)):
            if keys[number] in self._blocks:  # another request wrote the same meanwhile; what follows is its own too
                return
            first = number * self._size
            self._blocks[keys[number]] = _Block(lease.places[first : first + self._size])
            lease.blocks.append(keys[number])

    def give_back(self, lease: Lease) -> None:
        """Ends a lease. What it shared stays for others."""
        for key in reversed(lease.blocks):  # so that the end of a prefix goes before its beginning
            block = self._blocks[key]
            block.users -= 1
            self._unused += block.users == 0
            self._blocks.move_to_end(key)
        self._free += lease.places[len(lease.blocks) * self._size :]
        lease.places, lease.blocks = [], []

    def _keys(self, head: Sequence[int], salt: str, total: int):  # type: ignore[no-untyped-def]
        """Keys of the whole blocks of a head; the last token of a request is never among them, so that there is always
        one left to compute the first answer token from."""
        before: object = salt
        for first in range(0, min(len(head), total - 1) - self._size + 1, self._size):
            before = (before, tuple(head[first : first + self._size]))
            yield before
