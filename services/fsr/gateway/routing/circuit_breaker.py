"""A circuit breaker for each replica: one that fails its requests gets none for a while, longer each time.

Envoy calls this outlier ejection. It is our own code because gRPC has it only within its own load balancing, which
does not know the checkpoint or the image that a call is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["BreakerPolicy", "CircuitBreaker", "HalfOpenCall"]


@dataclass(frozen=True)
class BreakerPolicy:
    """Opens after `failures` in a row, for `seconds`; twice as long each further time, at most for `longest`."""

    failures: int = 3
    seconds: float = 1.0
    longest: float = 60.0


class HalfOpenCall:
    """The one call that a half-open breaker lets through. How it ends closes or opens the breaker."""


class CircuitBreaker:
    """closed -> (failures in a row) -> open -> (time) -> half-open: one call -> closed, or open for twice as long.

    Only a call that succeeds closes it again: a replica can pass its health check and fail every request.
    """

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._clock = policy, clock
        self._failures = 0  # in a row, while closed
        self._openings = 0  # in a row, without a success between
        self._open_until: float | None = None
        self._half_open_call: HalfOpenCall | None = None

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @property
    def allows_call(self) -> bool:
        """Whether the replica may get a call now. A half-open breaker allows one at a time."""
        return self.state == "closed" or (self.state == "half-open" and self._half_open_call is None)

    def call_started(self) -> HalfOpenCall | None:
        """Notes a call. Returns a token if it is the half-open call: `failed` and `call_ended` want it back."""
        if self.state == "closed" or not self.allows_call:
            return None
        self._half_open_call = HalfOpenCall()
        return self._half_open_call

    def call_ended(self, call: HalfOpenCall | None) -> None:
        """Notes the end of a call. If the half-open call ended without a verdict, the next call takes its part."""
        if call is self._half_open_call:
            self._half_open_call = None

    def succeeded(self) -> None:
        """Closes the breaker."""
        self._failures = self._openings = 0
        self._open_until = self._half_open_call = None

    def failed(self, call: HalfOpenCall | None = None) -> bool:
        """Counts a failure of a call; returns whether it opens the breaker."""
        half_open = call is not None and call is self._half_open_call
        if self._open_until is not None and not half_open:
            return False  # a call from before the breaker opened
        self._failures += 1
        if self._failures < self._policy.failures and not half_open:
            return False
        doublings = min(self._openings, 64)  # a float does not hold 2.0 to the power of some thousand
        self._open_until = self._clock() + min(self._policy.longest, self._policy.seconds * 2.0**doublings)
        self._openings, self._failures, self._half_open_call = self._openings + 1, 0, None
        return True
