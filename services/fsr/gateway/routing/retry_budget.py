"""How often and how soon a call is repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

__all__ = ["RetryBudget", "backoff"]

_REFILL_PER_SECOND = 1.0


class RetryBudget:
    """A bucket of retries that requests fill and retries empty, so that a sick cluster is not hammered.

    Each request adds `ratio`, time adds one a second, and no more than `burst` are saved up. In a healthy cluster it
    is full; when everything fails, retries are at most the share `ratio` of the load.
    """

    def __init__(self, ratio: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ratio, self._burst, self._clock = ratio, float(burst), clock
        self._tokens, self._seen = self._burst, clock()

    def deposit(self) -> None:
        """For each request that comes in."""
        self._tokens = min(self._burst, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Whether one more retry may be made; if so it is taken off."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * _REFILL_PER_SECOND)
        self._seen = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def backoff(attempt: int, first: float = 0.05, most: float = 2.0) -> float:
    """Seconds before retry number `attempt`, from 0: doubling, with full jitter."""
    return random.uniform(0.5, 1.0) * min(most, first * 2.0 ** min(attempt, 64))  # more would be no float
