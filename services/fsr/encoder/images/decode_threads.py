"""Threads that decode and prepare pictures, and the time that they may take.

A decoder can only be stopped where it reads on. So decoding has threads of its own: one that is still busy after its
request has gone is not given other work, and nothing but decoding waits for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import TypeVar

from fsr.common.errors import Expired, InvalidRequest, Overloaded, ServiceError

__all__ = ["DecodeThreads", "DecodeTime", "late"]

T = TypeVar("T")
_LARGE = 2**24  # pixels; larger requests have one thread, so that others do not wait for them


class DecodeThreads:
    """`threads` for requests of ordinary size, and one more for larger ones."""

    def __init__(self, threads: int) -> None:
        self._ordinary = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="decode-large")

    async def run(self, work: Callable[[threading.Event], T], pixels: int, deadline: float) -> T:
        """The result of `work`, done in a thread before `deadline` (by time.monotonic).

        `work` gets an event that is set as soon as nobody waits for the result any more.

        Raises what `work` raises; Overloaded if no thread was free in time; Expired if the work did not end in time.
        """
        if time.monotonic() >= deadline:
            raise late(started=False)
        abandoned = threading.Event()
        thread = (self._large if pixels > _LARGE else self._ordinary).submit(work, abandoned)
        try:
            async with asyncio.timeout(deadline - time.monotonic() if isfinite(deadline) else None):
                return await asyncio.wrap_future(thread)
        except TimeoutError:
            raise late(started=not thread.cancelled()) from None
        finally:
            abandoned.set()


class DecodeTime:
    """The time that the pictures of one request may take: `seconds` of CPU, counted in the thread that makes this, or
    until they are `abandoned`."""

    def __init__(self, seconds: float, abandoned: threading.Event) -> None:
        self._seconds, self._end, self._abandoned = seconds, time.thread_time() + seconds, abandoned

    def check(self, field: str) -> None:
        """Raises InvalidRequest, naming the picture `field` at which the time is over, or Expired."""
        if time.thread_time() > self._end:
            remedy = "scale it down, save it in a simpler way, or send fewer pictures"
            raise InvalidRequest(f"{field}: takes more than {self._seconds:g} s to decode; {remedy}")
        if self._abandoned.is_set():
            raise late(started=True)


def late(started: bool) -> ServiceError:
    """The error of a request whose time is over: another encoder may help only if its work has not begun."""
    if started:
        return Expired("deadline: passed while the encoder worked on the images; allow more time or send less")
    return Overloaded("encoder: did not come to the images in time; try again, allow more time or add replicas")
