"""Passive health: a replica that fails requests is left alone for a while, longer each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Ejection", "EjectionPolicy"]


@dataclass(frozen=True)
class EjectionPolicy:
    """After `failures` in a row out for `seconds`, twice as long each further time, at most `longest`."""

    failures: int = 3
    seconds: float = 1.0
    longest: float = 60.0


class Ejection:
    """Closed -> (failures in a row) -> out -> (time) -> one request on trial -> closed, or out for twice as long."""

    def __init__(self, policy: EjectionPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._clock = policy, clock
        self._failures = self._times = 0
        self._until: float | None = None
        self._on_trial = False

    @property
    def admits(self) -> bool:
        """Whether it may get a request now: not ejected, or its time is over and nobody tries it yet."""
        return self._until is None or (self._clock() >= self._until and not self._on_trial)

    @property
    def out(self) -> bool:
        """Whether it is ejected or on trial."""
        return self._until is not None

    def chosen(self) -> None:
        """A request goes to it: while it is out, that request is the trial."""
        if self._until is not None:
            self._on_trial = True

    def succeeded(self) -> None:
        self._failures = self._times = 0
        self._until, self._on_trial = None, False

    def abandoned(self) -> None:
        """The request ended without telling anything about the replica: the next one is the trial."""
        self._on_trial = False

    def failed(self) -> bool:
        """Counts a failure; whether it is ejected by it."""
        self._failures += 1
        if self._failures < self._policy.failures and not self._on_trial:
            return False
        if self._until is not None and not self._on_trial:
            return False  # a straggler from before the ejection
        self._until = self._clock() + min(self._policy.longest, self._policy.seconds * 2**self._times)
        self._times, self._failures, self._on_trial = self._times + 1, 0, False
        return True
