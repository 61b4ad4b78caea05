"""Who is answered now, who waits, and who is told to come again later: decided by KV memory.

A request reserves (prompt + most answer tokens) x bytes a token and starts when that fits beside what the running
ones reserved. Those that do not fit wait in line, first come, first served, so that a large one is not starved by
small ones; how many wait and how long is bounded, and who would exceed that is refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from fsr.common.errors import InvalidRequest, Overloaded
from fsr.decoder.metrics import Metrics

__all__ = ["Admission", "Place"]

_FIRST_HINT = 1.0  # seconds to try again after, while no request has ended yet
_SMOOTHING = 0.2  # weight of the latest interval between two ends


class Place:
    """One request's place: first in the doorway, then in line, then among the running ones."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0  # reserved; 0 until it runs
        self.wanted = 0
        self.turn: asyncio.Future[None] | None = None

    async def reserve(self, wanted: int) -> float:
        """Waits until `wanted` bytes are reserved; returns the seconds that it took.

        Raises:
            InvalidRequest: more than there is in all.
            Overloaded: too many wait, or it has waited too long.
        """
        return await self._admission._reserve(self, wanted)


class Admission:
    """The line in front of an engine. All its methods belong to one event loop."""

    def __init__(
        self, capacity: int, max_running: int, max_waiting: int, max_wait_seconds: float, metrics: Metrics
    ) -> None:
        self.capacity, self.max_running, self.max_waiting = capacity, max_running, max_waiting
        self._max_wait, self._metrics = max_wait_seconds, metrics
        self.reserved = self.running = 0
        self._doorway = 0
        self._line: deque[Place] = deque()
        self._interval, self._last_end = 0.0, 0.0

    @property
    def waiting(self) -> int:
        """Requests in line for KV memory or a slot."""
        return len(self._line)

    @property
    def busy(self) -> int:
        """Requests that are worked on: those that run, and those whose prompt is being laid out."""
        return self.running + self._doorway

    @property
    def _to_start(self) -> int:
        return self._doorway + len(self._line)

    @contextmanager
    def enter(self, least: int) -> Iterator[Place]:
        """Takes in a request that needs at least `least` bytes; leaving the block frees whatever it holds.

        This costs nothing, so it comes before the prompt is laid out. Raises as :meth:`Place.reserve` does.
        """
        self._check_size(least)
        soon = max(0, self.max_running - self.running) if self.reserved + least <= self.capacity else 0
        if self._to_start >= self.max_waiting + soon:
            self._refuse("waiting")
        place = Place(self)
        self._doorway += 1
        try:
            yield place
        finally:
            self._leave(place)

    async def _reserve(self, place: Place, wanted: int) -> float:
        self._check_size(wanted)
        began = time.monotonic()
        place.wanted = wanted
        if not self._line and self._fits(wanted):
            self._doorway -= 1
            self._run(place)
            return 0.0
        if len(self._line) >= self.max_waiting:
            self._refuse("waiting")
        place.turn = asyncio.get_running_loop().create_future()
        self._doorway -= 1
        self._line.append(place)
        await asyncio.wait({place.turn}, timeout=self._max_wait)
        if not place.bytes:
            self._refuse("wait_time")
        return time.monotonic() - began

    def _fits(self, wanted: int) -> bool:
        return self.running < self.max_running and self.reserved + wanted <= self.capacity

    def _run(self, place: Place) -> None:
        place.bytes = place.wanted
        self.running += 1
        self.reserved += place.bytes

    def _leave(self, place: Place) -> None:
        if place.bytes:
            self.running -= 1
            self.reserved -= place.bytes
            now = time.monotonic()
            if self._last_end:
                self._interval += _SMOOTHING * (now - self._last_end - self._interval)
            self._last_end = now if self.running or self._line else 0.0  # an idle time tells nothing
        elif place.turn is not None:
            self._line.remove(place)
        else:
            self._doorway -= 1
        while self._line and self._fits(self._line[0].wanted):
            following = self._line.popleft()
            self._run(following)
            if following.turn is not None and not following.turn.done():
                following.turn.set_result(None)

    def _check_size(self, wanted: int) -> None:
        if wanted > self.capacity:
            self._metrics.refused("too_large").inc()
            raise InvalidRequest(
                f"sampling.max_tokens: prompt and answer together need {wanted} bytes of KV memory, this replica has"
                f" {self.capacity} in all; lower max_tokens or the budget, or raise the replica's --kv-memory"
            )

    def _refuse(self, reason: str) -> None:
        self._metrics.refused(reason).inc()
        told = (
            f"{self._to_start} requests wait already"
            if reason == "waiting"
            else f"no KV memory came free within {self._max_wait:g} s"
        )
        raise Overloaded(f"decoder: {told}; try again later, or ask another replica", self.retry_after())

    def retry_after(self) -> float:
        """Seconds until those who wait should have started, judged by how fast answers have ended of late."""
        if not self._interval:
            return _FIRST_HINT
        return min(max(self._interval * (self._to_start + 1), 0.05), max(self._max_wait, 0.05))
