"""How long a call may take, reading and fetching its pictures included."""

from __future__ import annotations

import time
from math import inf, isfinite
from numbers import Real
from typing import Any

from fsr.client.errors import DeadlineExceeded, InvalidRequestError

__all__ = ["CallTime"]

_LONGEST = 1e9  # seconds that gRPC can count; every gateway refuses as many


class CallTime:
    """The time of one call, from now on. None leaves its length to the gateway.

    Raises InvalidRequestError if it is no number of seconds.
    """

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and (isinstance(timeout, bool) or not _is_finite(timeout)):
            remedy = "give a number such as 600, or None for the gateway's own limit"
            raise InvalidRequestError(f"timeout: {timeout!r} is no number of seconds; {remedy}")
        self.seconds = inf if timeout is None else min(float(timeout), _LONGEST)
        self.end = time.monotonic() + self.seconds

    def left(self) -> float | None:
        """Seconds for the call itself. Raises DeadlineExceeded if there are none."""
        if self.end == inf:
            return None
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise DeadlineExceeded(f"timeout: {self.seconds:g} s passed before the request was sent; allow more time")
        return seconds


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
