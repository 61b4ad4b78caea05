"""When callers that a full service refuses should come back."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["RetryHints"]

_LEAST = 0.05  # seconds
_SMOOTHING = 0.2  # weight of the latest interval between two ends of requests


class RetryHints:
    """One caller after the other, at the rate at which requests end: each hint is later than those given before it.

    With the same hint for all they would come back together, and all but one would be refused again.
    """

    def __init__(self, first: float, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        """In seconds: `first` is the interval while no two requests have ended, `longest` bounds every hint."""
        self._first, self._longest, self._clock = first, longest, clock
        self._interval, self._last_end, self._promised = 0.0, 0.0, 0.0

    def ended(self, busy: bool) -> None:
        """A request has ended. `busy`: whether there is still work, because idle time says nothing of the rate."""
        now = self._clock()
        if self._last_end:
            interval = now - self._last_end
            self._interval += (_SMOOTHING if self._interval else 1.0) * (interval - self._interval)
        self._last_end = now if busy else 0.0

    def next(self, ahead: int) -> float:
        """Seconds for the caller that is refused now, with `ahead` requests in the line before it."""
        now, interval = self._clock(), self._interval or self._first
        if self._last_end:  # where nothing ends any more, the rate of before says too little
            interval = max(interval, now - self._last_end)
        self._promised = max(self._promised, now + ahead * interval) + interval
        self._promised = min(self._promised, now + self._longest)
        return max(self._promised - now, min(_LEAST, self._longest))
