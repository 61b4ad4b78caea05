"""The services of a plan: started together, watched, started again, and stopped together.

Own code: process managers such as supervisord or honcho cannot tell when a request could be answered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fsr.cli.stack.child import Child
from fsr.cli.stack.guard import Guard
from fsr.cli.stack.plan import Plan, PortTaken
from fsr.cli.stack.readiness import missing
from fsr.cli.stack.signals import StopSignals

__all__ = ["ServiceEnded", "Stack", "StartFailed"]

_POLL_SECONDS = 0.3
_NEWS_SECONDS = 10.0  # a wait without news says this often what it waits for
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0  # before a service starts again; each time twice as long
_STEADY_SECONDS = 60.0  # after so long a life the delay is the first one again
_LINES, _LINE_CHARACTERS = 5, 300  # of a log that are shown


class StartFailed(Exception):
    """A service did not start; the message names it and its log."""


class ServiceEnded(Exception):
    """A service has ended that was not to be started again; the message names it, its log and the last lines there."""


@dataclass
class _Restart:
    """When a service starts again, at moments of `time.monotonic()`."""

    started: float
    due: float | None = None  # None: it runs
    delay: float = _FIRST_DELAY

    def plan(self, now: float) -> float:
        """The seconds until it is due."""
        if now - self.started > _STEADY_SECONDS:
            self.delay = _FIRST_DELAY
        delay, self.delay = self.delay, min(2 * self.delay, _LONGEST_DELAY)
        self.due = now + delay
        return delay

    def begin(self, now: float) -> None:
        self.started, self.due = now, None


class Stack:
    """The processes. `report` gets a line for all that happens to them."""

    def __init__(self, plan: Plan, logs: Path, signals: StopSignals, report: Callable[[str], None]) -> None:
        self.plan, self._logs, self._signals, self._report = plan, logs, signals, report
        self._children: list[Child] = []
        self._guard: Guard | None = None

    def start(self, seconds: float | None) -> None:
        """Returns when a request could be answered. Raises StartFailed, after `seconds` at the latest if not None."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            self.plan.check_ports()
            commands = self.plan.commands().items()
            self._guard = Guard()
            self._children = [Child(name, command, self._logs / f"{name}.log") for name, command in commands]
        except PortTaken as error:
            raise StartFailed(str(error)) from error
        except OSError as error:
            reason = f"cannot write to {self._logs} ({error.strerror})"
            raise StartFailed(f"--logs: {reason}; name a folder that can be written") from error
        for child in self._children:
            try:
                self._start(child)
            except OSError as error:
                raise StartFailed(f"{child.name} cannot start: {error}") from error
        begin = news = time.monotonic()
        deadline = math.inf if seconds is None else begin + seconds
        waiting: list[str] | None = None
        while (now := time.monotonic()) < deadline:
            for child in self._children:
                if not child.running:
                    raise StartFailed(f"{child.name} stopped: {child.reason} (log: {child.log})")
            before, waiting = waiting, missing(self.plan)
            if not waiting:
                return
            if waiting != before:
                news = now
            elif now - news >= _NEWS_SECONDS:
                news = now
                self._report(self._wait_line(waiting, now - begin))
            self._signals.sleep(_POLL_SECONDS)
        remedy = f"see the logs in {self._logs}, or wait longer (fsr up --start-seconds)"
        raise StartFailed(f"not ready within {seconds:g} s; {remedy}")

    def watch(self, restart: bool = True) -> None:
        """Names each service that ends, and starts it again, until a signal. Raises ServiceEnded without `restart`."""
        restarts = {child.name: _Restart(time.monotonic()) for child in self._children}
        broken_since = news = 0.0  # 0: all is well
        while True:
            now = time.monotonic()
            for child in self._children:
                if child.running:
                    continue
                ended = restarts[child.name]
                if ended.due is None:
                    child.end(0)  # what it left behind may hold its port
                    if not restart:
                        raise ServiceEnded(self._end_line(child))
                    broken_since, news = broken_since or now, now
                    self._report(f"{self._end_line(child)}\nstarts again in {ended.plan(now):g} s")
                elif now >= ended.due:
                    ended.begin(now)
                    self._start(child)
            if broken_since and all(ended.due is None for ended in restarts.values()):
                waiting = missing(self.plan)
                if not waiting:
                    self._report(f"ready again after {now - broken_since:.0f} s")
                    broken_since = 0.0
                elif now - news >= _NEWS_SECONDS:
                    news = now
                    self._report(self._wait_line(waiting, now - broken_since))
            self._signals.sleep(_POLL_SECONDS)

    def stop(self, seconds: float) -> None:
        """Sends SIGTERM to the gateway first and the encoder last; kills what still runs after `seconds`."""
        for child in reversed(self._children):
            child.terminate()
        deadline = time.monotonic() + seconds
        for child in reversed(self._children):
            child.end(max(0.1, deadline - time.monotonic()))
        if self._guard is not None:
            self._guard.end()

    def _start(self, child: Child) -> None:
        # A signal's exception between the fork and the assignment would leave the process behind.
        with self._signals.deferred():
            child.start()
            if self._guard is not None:
                self._guard.watch(child.pid for child in self._children if child.pid is not None)

    def _wait_line(self, names: list[str], seconds: float) -> str:
        child = next(child for child in self._children if child.name == names[0])
        last = "".join(child.last_lines(1))[:_LINE_CHARACTERS] or "nothing yet"
        return f"waiting for {', '.join(names)} ({seconds:.0f} s); the log of {child.name} says: {last}"

    def _end_line(self, child: Child) -> str:
        lines = "".join(f"\n  {line[:_LINE_CHARACTERS]}" for line in child.last_lines(_LINES))
        return f"{child.name} {child.fate}; the end of its log {child.log}:{lines or ' nothing'}"
