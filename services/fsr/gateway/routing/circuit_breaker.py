"""Passive health: a replica that fails requests is left alone for a while, longer each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Ejection", "EjectionPolicy", "Trial"]


@dataclass(frozen=True)
class EjectionPolicy:
    """After `failures` in a row out for `seconds`, twice as long each further time, at most `longest`."""

    failures: int = 3
    seconds: float = 1.0
    longest: float = 60.0


class Trial:
    """The one request by which a replica may come back."""


class Ejection:
    """Closed -> (failures in a row) -> out -> (time) -> one request on trial -> closed, or out for twice as long.

    Only a request that went well closes it again: a replica whose health check answers may fail every request.
    """

    def __init__(self, policy: EjectionPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._clock = policy, clock
        self._failures = self._times = 0
        self._until: float | None = None
        self._trial: Trial | None = None

    @property
    def admits(self) -> bool:
        """Whether it may get a request now: not ejected, or its time is over and nobody tries it yet."""
        return self._until is None or (self._clock() >= self._until and self._trial is None)

    @property
    def out(self) -> bool:
        """Whether it is ejected or on trial."""
        return self._until is not None

    def chosen(self) -> Trial | None:
        """A request goes to it; gives the trial where that request is it, to be shown when the request ends."""
        if self._until is None or not self.admits:
            return None
        self._trial = Trial()
        return self._trial

    def succeeded(self) -> None:
        self._failures = self._times = 0
        self._until = self._trial = None

    def abandoned(self, trial: Trial | None) -> None:
        """A request ended without telling anything about the replica: if it was the trial, the next one is."""
        if trial is self._trial:
            self._trial = None

    def failed(self, trial: Trial | None = None) -> bool:
        """Counts a failure; whether it is ejected by it."""
        on_trial = trial is not None and trial is self._trial
        if self._until is not None and not on_trial:
            return False  # a straggler from before the ejection
        self._failures += 1
        if self._failures < self._policy.failures and not on_trial:
            return False
        times = min(self._times, 64)  # twice as long a thousand times is no float
        self._until = self._clock() + min(self._policy.longest, self._policy.seconds * 2.0**times)
        self._times, self._failures, self._trial = self._times + 1, 0, None
        return True
