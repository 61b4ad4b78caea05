"""The bytes of HTTP bodies before their requests have a slot: those that arrive, and those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Bodies", "Body"]


class Bodies:
    """Bounds the bytes of all bodies together. What begins to arrive gets its room from what arrives for the longest:
    so many slow uploads do not keep others out."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._arriving: dict[Body, None] = {}  # the oldest first

    def _grow(self, body: Body, count: int) -> None:
        self._arriving.setdefault(body)
        self._bytes += count
        while self._bytes > self._most_bytes and self._arriving:
            next(iter(self._arriving)).refuse()

    def _free(self, body: Body, count: int) -> None:
        self._bytes -= count
        self._arriving.pop(body, None)

    def _complete(self, body: Body) -> None:
        self._arriving.pop(body, None)


class Body:
    """The body of one request. `refused`: it has to make room for others."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._bytes = bodies, 0
        self._timeout: asyncio.Timeout | None = None
        self.refused = False

    @asynccontextmanager
    async def waiting_until(self, end: float) -> AsyncIterator[None]:
        """Surrounds the wait for more of it. Raises TimeoutError at `end`, and when it is refused."""
        try:
            async with asyncio.timeout_at(end) as self._timeout:
                yield
        finally:
            self._timeout = None

    def grow(self, count: int, complete: bool) -> None:
        """So many more bytes are here; it may be refused by that."""
        self._bytes += count
        self._bodies._grow(self, count)
        if complete and not self.refused:
            self._bodies._complete(self)

    def refuse(self) -> None:
        """Ends the wait for the rest of it."""
        self.refused = True
        self.free()
        if self._timeout is not None:
            self._timeout.reschedule(0)

    def free(self) -> None:
        """Its bytes do not count any more: its request has a slot, or has ended."""
        self._bodies._free(self, self._bytes)
        self._bytes = 0
