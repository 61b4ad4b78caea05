"""The end of a service's life: no new calls, and time for those in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fsr.common.errors import NotReady

__all__ = ["Draining"]


class Draining:
    """Counts the calls in flight. Once it drains, it refuses new calls and waits for those in flight."""

    def __init__(self, refusal: str, retry_after: float | None = None) -> None:
        """`refusal` is the error message of a refused call, `retry_after` its hint in seconds."""
        self._refusal, self._retry_after = refusal, retry_after
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0

    @property
    def active(self) -> bool:
        """Whether the service drains."""
        return self._draining

    def check(self) -> None:
        """Raises NotReady while the service drains."""
        if self._draining:
            raise NotReady(self._refusal, self._retry_after)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts a call for as long as it lasts. Raises NotReady while the service drains."""
        self.check()
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Refuses new calls from now on. Returns when no call is in flight, at the latest after `seconds`."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
