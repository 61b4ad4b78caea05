"""Which request runs now, which waits, and which is refused. KV memory decides.

A request reserves (prompt tokens + most answer tokens) x bytes per token. It starts when this fits beside what the
running requests have reserved. Until then it waits in a queue, first come, first served, so that small requests do
not starve a large one. The length of the queue and the time in it are bounded; a request beyond that is refused.

This is own code because semaphores and queues of the standard library count requests, not bytes, and cannot say when
to try again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from fsr.common.errors import InvalidRequest, Overloaded
from fsr.common.requests.retry_hints import RetryHints
from fsr.decoder.metrics import Metrics

__all__ = ["Admission", "Ticket"]

_FIRST_RETRY_AFTER = 1.0  # seconds; the hint while no request has ended yet


class Ticket:
    """One request's way through admission: its prompt is prepared, then it waits, then it runs."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.requested_bytes = 0
        self.reserved_bytes = 0  # 0 until it runs
        self.turn: asyncio.Future[None] | None = None  # done when it may run; None if it never waited

    async def reserve(self, requested_bytes: int) -> float:
        """Waits until `requested_bytes` are reserved; returns the seconds that it took.

        Raises:
            InvalidRequest: it is more than the whole KV memory.
            Overloaded: too many requests wait, or this one has waited too long.
        """
        return await self._admission._reserve(self, requested_bytes)


class Admission:
    """The waiting queue in front of an engine. All its methods belong to one event loop."""

    def __init__(
        self, capacity: int, max_running: int, max_waiting: int, max_wait_seconds: float, metrics: Metrics
    ) -> None:
        self.capacity, self.max_running, self.max_waiting = capacity, max_running, max_waiting
        self._max_wait, self._metrics = max_wait_seconds, metrics
        self.reserved = self.running = 0
        self._preparing = 0
        self._queue: deque[Ticket] = deque()
        self._hints = RetryHints(_FIRST_RETRY_AFTER, max_wait_seconds)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Requests in work: those that run, and those whose prompt is prepared."""
        return self.running + self._preparing

    @property
    def _not_started(self) -> int:
        return self._preparing + len(self._queue)

    @contextmanager
    def enter(self, least_bytes: int) -> Iterator[Ticket]:
        """Lets a request in that needs at least `least_bytes`. At the end of the block all that it holds is free.

        This check is cheap, so it comes before the prompt is prepared. Raises as :meth:`Ticket.reserve` does.
        """
        self._check_size(least_bytes)
        startable = max(0, self.max_running - self.running) if self.reserved + least_bytes <= self.capacity else 0
        if self._not_started >= self.max_waiting + startable:
            self._refuse_full_queue()
        ticket = Ticket(self)
        self._preparing += 1
        try:
            yield ticket
        finally:
            self._leave(ticket)

    async def _reserve(self, ticket: Ticket, requested_bytes: int) -> float:
        self._check_size(requested_bytes)
        started = time.monotonic()
        ticket.requested_bytes = requested_bytes
        if not self._queue and self._fits(requested_bytes):
            self._preparing -= 1
            self._run(ticket)
            return 0.0
        if len(self._queue) >= self.max_waiting:
            self._refuse_full_queue()
        ticket.turn = asyncio.get_running_loop().create_future()
        self._preparing -= 1
        self._queue.append(ticket)
        await asyncio.wait({ticket.turn}, timeout=self._max_wait)
        if not ticket.reserved_bytes:
            self._refuse("wait_time", f"no KV memory became free within {self._max_wait:g} s")
        return time.monotonic() - started

    def _fits(self, requested_bytes: int) -> bool:
        return self.running < self.max_running and self.reserved + requested_bytes <= self.capacity

    def _run(self, ticket: Ticket) -> None:
        ticket.reserved_bytes = ticket.requested_bytes
        self.running += 1
        self.reserved += ticket.reserved_bytes

    def _leave(self, ticket: Ticket) -> None:
        if ticket.reserved_bytes:
            self.running -= 1
            self.reserved -= ticket.reserved_bytes
            self._hints.ended(busy=bool(self.running or self._queue))  # idle time does not count
        elif ticket.turn is not None:
            self._queue.remove(ticket)
        else:
            self._preparing -= 1
        while self._queue and self._fits(self._queue[0].requested_bytes):
            following = self._queue.popleft()
            self._run(following)
            if following.turn is not None and not following.turn.done():
                following.turn.set_result(None)

    def _check_size(self, requested_bytes: int) -> None:
        if requested_bytes > self.capacity:
            self._metrics.refused("too_large").inc()
            raise InvalidRequest(
                f"sampling.max_tokens: prompt and answer together need {requested_bytes} bytes of KV memory, this"
                f" replica has {self.capacity} in all; lower max_tokens or the budget, or raise the replica's"
                " --kv-memory"
            )

    def _refuse_full_queue(self) -> None:
        self._refuse("waiting", f"{self._not_started} requests wait already")

    def _refuse(self, reason: str, message: str) -> None:
        self._metrics.refused(reason).inc()
        hint = self._hints.next(self._not_started)
        raise Overloaded(f"decoder: {message}; try again later, or ask another replica", hint)
