"""How long a caller still waits. Each hop gets the time that remains.

Our own code because gRPC's Python API does not pass a deadline on from one call to the next.
"""

from __future__ import annotations

import time

from fsr.common.errors import Expired, InvalidRequest

__all__ = ["Deadline"]

_ROUNDED = 1.02  # gRPC sends a timeout in few digits, up to a hundredth too long


class Deadline:
    """A point in time after which nobody waits for the answer."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @classmethod
    def after(cls, seconds: float | None, default: float, longest: float) -> Deadline:
        """In so many seconds, or in `default` seconds if it is None. Raises InvalidRequest for one that is too long."""
        if seconds is None:
            return cls(default)
        if seconds > longest * _ROUNDED:
            raise InvalidRequest(f"deadline: {seconds:.0f} s are more than {longest:.0f} s; wait less long")
        return cls(min(seconds, longest))

    @property
    def passed(self) -> bool:
        return self.seconds_left <= 0

    @property
    def seconds_left(self) -> float:
        """Below 0 once it has passed."""
        return self._end - time.monotonic()

    def remaining(self) -> float:
        """Seconds, above 0. Raises Expired."""
        seconds = self.seconds_left
        if seconds <= 0:
            raise Expired("deadline: has passed; allow more time")
        return seconds
