"""How often and how soon a call is repeated.

Our own code because gRPC's retries stay within one channel, and the gateway has a channel for each replica.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

__all__ = ["RetryBudget", "backoff"]

_REFILL_PER_SECOND = 1.0


class RetryBudget:
    """A bucket of retries. Requests fill it and retries empty it, so that retries do not overload a sick cluster.

    Each request adds `ratio`, each second adds one, and the bucket holds at most `burst`. In a healthy cluster it is
    full; when everything fails, retries are at most the share `ratio` of the load.
    """

    def __init__(self, ratio: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._ratio, self._burst, self._clock = ratio, float(burst), clock
        self._retries, self._refilled = self._burst, clock()

    def deposit(self) -> None:
        """Adds the share of one new request."""
        self._retries = min(self._burst, self._retries + self._ratio)

    def withdraw(self, price: float = 1.0) -> bool:
        """Takes one retry, or the part `price` of one, if there is as much; returns whether there was."""
        now = self._clock()
        self._retries = min(self._burst, self._retries + (now - self._refilled) * _REFILL_PER_SECOND)
        self._refilled = now
        if self._retries < price:
            return False
        self._retries -= price
        return True


def backoff(attempt: int, first: float = 0.05, longest: float = 2.0) -> float:
    """Seconds before retry number `attempt`, from 0: they double, with jitter of up to a half."""
    # A float does not hold 2.0 to the power of some thousand.
    return random.uniform(0.5, 1.0) * min(longest, first * 2.0 ** min(attempt, 64))
