"""A replica's part in the shared cache: it tells what it has, hands it over, and fetches what others have.

Whatever is wrong with the directory or with other replicas, features that do not come in time are a miss, and the
replica computes them itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import structlog
import torch

from fsr.encoder.cache import FeatureCache
from fsr.encoder.shared_cache.directory import News
from fsr.encoder.shared_cache.packing import pack, unpack
from fsr_core.backbones import ImageFeatures

__all__ = ["SharedFeatures"]

log = structlog.get_logger()

_PACE_SECONDS = (
    0.5  # between two announcements: they and their news cost CPU time, and people think before they ask again
)
_FETCH_SECONDS = 0.5
_PAUSE_SECONDS = 5.0  # without fetches after one that was late, so that few requests wait for what is frozen
_RETRY_SECONDS = 1.0  # until the next try after a directory has failed


class _Directory(Protocol):
    """What is needed of a :class:`~fsr.encoder.shared_cache.directory.Directory`. Calls may raise any error."""

    async def announce(self, name: str, added: Collection[str], dropped: Collection[str]) -> None: ...
    async def news(self, name: str) -> News | None: ...
    async def wanted(self, name: str) -> Collection[str] | None: ...
    async def fetch(self, name: str, key: str) -> Any: ...
    async def offer(self, key: str, content: Any) -> None: ...


class SharedFeatures:
    """The features of other replicas, for the replica `name` with its own `cache`.

    `connect` returns the directory; it may block, and raise any error. `on_hit` is called after each picture whose
    features another replica had. All methods run on one event loop, and none raises an error.
    """

    def __init__(
        self,
        name: str,
        cache: FeatureCache,
        device: torch.device,
        connect: Callable[[], _Directory],
        on_hit: Callable[[], None] = lambda: None,
    ) -> None:
        self._name, self._cache, self._device = name, cache, device
        self._connect, self._on_hit = connect, on_hit
        self._directory: _Directory | None = None
        self._elsewhere: set[str] = set()
        self._announced: set[str] = set()
        self._has_changed = asyncio.Event()
        self._late_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Takes part from now on. Does nothing the second time."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._take_part())

    async def stop(self) -> None:
        """Takes part no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changed(self) -> None:
        """The cache has changed; the others will hear of it."""
        self._has_changed.set()

    async def get(self, key: str) -> ImageFeatures | None:
        """The features that another replica has of a key; None if none has them, or if they do not come in time."""
        directory = self._directory
        if directory is None or key not in self._elsewhere or time.monotonic() < self._late_until:
            return None
        fetch = asyncio.ensure_future(directory.fetch(self._name, key))
        fetch.add_done_callback(_say_nothing)
        # Not cancelled when it is late: the call goes on at the other side anyway.
        await asyncio.wait([fetch], timeout=_FETCH_SECONDS)
        if not fetch.done():
            log.warning("features of another replica are late; it may be gone", seconds=_FETCH_SECONDS)
            self._late_until = time.monotonic() + _PAUSE_SECONDS
            return None
        content = None if fetch.cancelled() or fetch.exception() is not None else fetch.result()
        if content is None:
            self._elsewhere.discard(key)
            return None
        self._on_hit()
        return unpack(content, self._device)

    async def _take_part(self) -> None:
        while True:
            try:
                directory = await asyncio.to_thread(self._connect)
                await directory.announce(self._name, [], [])
                self._directory = directory
                async with asyncio.TaskGroup() as group:
                    for work in (self._announce, self._listen, self._hand_over):
                        group.create_task(work(directory))
            except* Exception as errors:
                log.warning("no features from other replicas for now", reason=repr(errors.exceptions[0]))
            self._directory = None
            self._begin_anew()
            await asyncio.sleep(_RETRY_SECONDS)

    def _begin_anew(self) -> None:
        self._elsewhere.clear()
        self._announced.clear()
        self._has_changed.set()

    async def _announce(self, directory: _Directory) -> None:
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            keys = self._cache.keys()
            added, dropped = keys - self._announced, self._announced - keys
            self._announced = keys
            if added or dropped:
                await directory.announce(self._name, added, dropped)
            await asyncio.sleep(_PACE_SECONDS)

    async def _listen(self, directory: _Directory) -> None:
        while True:
            news = await directory.news(self._name)
            if news is None:
                await self._announce_anew(directory)
            else:
                self._elsewhere -= news.removed
                self._elsewhere |= news.added
            await asyncio.sleep(_PACE_SECONDS)

    async def _hand_over(self, directory: _Directory) -> None:
        while True:
            wanted = await directory.wanted(self._name)
            if wanted is None:
                await asyncio.sleep(_PACE_SECONDS)  # until it is announced anew
            for key in wanted or ():
                features = self._cache.get(key)
                content = None if features is None else await asyncio.to_thread(pack, features)
                await directory.offer(key, content)

    async def _announce_anew(self, directory: _Directory) -> None:
        """The directory has forgotten this replica, as when it did not answer in time."""
        self._begin_anew()
        await directory.announce(self._name, [], [])


def _say_nothing(fetch: asyncio.Future[Any]) -> None:
    """Takes the error of a fetch that nobody waits for any more, which asyncio would log."""
    if not fetch.cancelled():
        fetch.exception()
