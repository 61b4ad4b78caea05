"""Waiting for what another process does, by what it says of itself."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Waits until `condition()` is true; AssertionError after `seconds`, which no test comes near unless it fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still false after {seconds:g} s"
        time.sleep(0.02)
