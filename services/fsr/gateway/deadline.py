"""How long a caller still waits; each hop gets what is left of it."""

from __future__ import annotations

import time

import grpc

from fsr.common.errors import Expired, InvalidRequest

__all__ = ["Deadline"]

_ROUNDED = 1.02  # gRPC tells a time in few digits, up to a hundredth too long


class Deadline:
    """A point in time after which nobody wants the answer."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext, default: float, longest: float) -> Deadline:
        """The caller's, or the default. Raises InvalidRequest for one that is longer than allowed."""
        left = context.time_remaining()
        if left is None:
            return cls(default)
        if left > longest * _ROUNDED:
            raise InvalidRequest(f"deadline: {left:.0f} s are more than {longest:.0f} s; wait less long")
        return cls(min(left, longest))

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds, above 0. Raises Expired."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise Expired("deadline: has passed; allow more time")
        return seconds
