"""Stop signals while services start, run and stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopSignals"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Within its block the first stop signal raises KeyboardInterrupt, and later ones do nothing.

    Signals that were ignored before stay ignored, as under nohup or in the background of a script.
    """

    def __enter__(self) -> StopSignals:
        self._received = self._deferring = False
        self._numbers = [number for number in _NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in self._numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """A second Ctrl-C must not interrupt the stop: the services are in sessions of their own and would stay."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def sleep(self, seconds: float) -> None:
        """Raises KeyboardInterrupt also if that of a signal got lost, as in a destructor or a callback of a library."""
        time.sleep(seconds)
        if self._received:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within this block takes effect at the end of the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._received:
            self._interrupt()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        if not self._deferring:
            self._interrupt()

    def _interrupt(self) -> None:
        self.ignore()
        raise KeyboardInterrupt
