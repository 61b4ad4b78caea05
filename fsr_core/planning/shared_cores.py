"""Processors in simulated time: of a tier alone, or cores that all tiers share."""

from __future__ import annotations

from collections.abc import Callable

import simpy

__all__ = ["Run", "alone", "shared"]

#: Runs so many seconds of work; the event is when it is done.
Run = Callable[[float], simpy.Event]


def alone(env: simpy.Environment) -> Run:
    """Work that nothing else slows down."""
    return env.timeout


def shared(env: simpy.Environment, cores: float) -> Run:
    """Work of threads that share ``cores`` evenly: each has a core at most, and less if there are more than cores.

    The library's resources serve one after another; an operating system shares.
    """
    return _SharedCores(env, cores).run


class _SharedCores:
    def __init__(self, env: simpy.Environment, cores: float) -> None:
        self._env, self._cores = env, cores
        self._left: dict[simpy.Event, float] = {}
        self._at, self._plan = 0.0, 0

    def run(self, seconds: float) -> simpy.Event:
        self._advance()
        done = self._env.event()
        self._left[done] = seconds
        self._schedule()
        return done

    @property
    def _speed(self) -> float:
        return min(1.0, self._cores / len(self._left)) if self._left else 1.0

    def _advance(self) -> None:
        """Takes off what was done since the last change."""
        done = (self._env.now - self._at) * self._speed
        self._at = self._env.now
        for event in self._left:
            self._left[event] -= done

    def _schedule(self) -> None:
        """Wakes up when the shortest piece of work ends, unless something changes before."""
        self._plan += 1
        if self._left:
            wake = self._env.timeout(max(0.0, min(self._left.values())) / self._speed, self._plan)
            wake.callbacks.append(self._wake)

    def _wake(self, event: simpy.Event) -> None:
        if event.value != self._plan:
            return
        self._advance()
        for done in [event for event, seconds in self._left.items() if seconds <= 1e-9]:
            del self._left[done]
            done.succeed()
        self._schedule()
