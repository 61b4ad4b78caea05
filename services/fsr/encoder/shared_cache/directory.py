"""Which encoder replica has which features in its cache. It knows keys and replicas, and keeps no features.

Replicas announce what they have, and hear what others have, in batches: a new picture costs no call of its own. Only
when a replica asks for features does the one that has them hand them over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Directory", "News"]

_POLL_SECONDS = 10.0  # a call that waits for something returns after so long without it
_SILENT_SECONDS = 3 * _POLL_SECONDS  # a replica that has not called for so long is gone
_FETCH_SECONDS = 2.0  # a replica that has not handed over features after so long is gone, or far too slow


@dataclass(frozen=True)
class News:
    """Keys that other replicas have since the last news, and those that no replica has any more."""

    added: Set[str]
    removed: Set[str]


@dataclass
class _Replica:
    keys: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    has_news: asyncio.Event = field(default_factory=asyncio.Event)
    wanted: set[str] = field(default_factory=set)
    is_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    called: float = field(default_factory=time.monotonic)


class Directory:
    """One for all replicas whose features are interchangeable. All methods run on one event loop."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._fetches: dict[str, asyncio.Future[Any]] = {}

    async def announce(self, name: str, added: Collection[str], dropped: Collection[str]) -> None:
        """Keys that a replica has put into its cache, and dropped from it, since it announced itself last.

        The news of a replica that was not known begins with all keys of the others.
        """
        self._forget_silent()
        replica = self._replicas.get(name)
        if replica is None:
            replica = self._replicas[name] = _Replica()
            replica.added.update(*(other.keys for other in self._others(name)))
            replica.has_news.set()
        replica.called = time.monotonic()
        replica.keys |= set(added)
        replica.keys -= set(dropped)
        for other in self._others(name):
            other.added |= set(added)
            other.removed -= set(added)
            if added:
                other.has_news.set()
        self._tell_gone(dropped)

    async def news(self, name: str) -> News | None:
        """What a replica has to know, as soon as there is any, or nothing after a while. None: it must announce itself
        anew."""
        replica = await self._wait(name, "has_news")
        if replica is None:
            return None
        news = News(frozenset(replica.added), frozenset(replica.removed))
        replica.added.clear()
        replica.removed.clear()
        return news

    async def wanted(self, name: str) -> Collection[str] | None:
        """Keys whose features a replica has to `offer`, as soon as there are any, or none after a while. None: it must
        announce itself anew."""
        replica = await self._wait(name, "is_wanted")
        if replica is None:
            return None
        wanted = frozenset(replica.wanted)
        replica.wanted.clear()
        return wanted

    async def fetch(self, name: str, key: str) -> Any:
        """What another replica offers for a key; None if none has it, or if it does not come in time."""
        fetch = self._fetches.get(key)
        if fetch is None:
            owners = [owner for owner, replica in self._replicas.items() if owner != name and key in replica.keys]
            if not owners:
                return None
            owner = owners[-1]
            fetch = self._fetches[key] = asyncio.get_running_loop().create_future()
            self._replicas[owner].wanted.add(key)
            self._replicas[owner].is_wanted.set()
            asyncio.get_running_loop().call_later(_FETCH_SECONDS, self._give_up, key, fetch, owner)
        return await asyncio.shield(fetch)

    async def offer(self, key: str, content: Any) -> None:
        """What a replica has of a key that was wanted, for all that wait for it; None if it has it no more."""
        fetch = self._fetches.pop(key, None)
        if fetch is not None:
            fetch.set_result(content)

    def is_used(self) -> bool:
        """Whether there is any replica."""
        self._forget_silent()
        return bool(self._replicas)

    async def _wait(self, name: str, what: str) -> _Replica | None:
        replica = self._replicas.get(name)
        if replica is None:
            return None
        replica.called = time.monotonic()
        event: asyncio.Event = getattr(replica, what)
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await event.wait()
        event.clear()
        return replica if self._replicas.get(name) is replica else None

    def _others(self, name: str) -> list[_Replica]:
        return [replica for other, replica in self._replicas.items() if other != name]

    def _give_up(self, key: str, fetch: asyncio.Future[Any], owner: str) -> None:
        if not fetch.done():
            self._fetches.pop(key, None)
            fetch.set_result(None)
            self._forget(owner)

    def _forget_silent(self) -> None:
        now = time.monotonic()
        for name in [name for name, replica in self._replicas.items() if now - replica.called > _SILENT_SECONDS]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        """If it lives, its next call tells it to announce itself anew."""
        replica = self._replicas.pop(name, None)
        if replica is not None:
            replica.has_news.set()
            replica.is_wanted.set()
            self._tell_gone(replica.keys)

    def _tell_gone(self, keys: Collection[str]) -> None:
        """Tells all replicas of those of the keys that none of them has any more."""
        gone = set(keys).difference(*(replica.keys for replica in self._replicas.values()))
        for replica in self._replicas.values() if gone else ():
            replica.added -= gone
            replica.removed |= gone
            replica.has_news.set()
