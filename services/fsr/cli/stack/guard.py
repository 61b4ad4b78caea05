"""Stops the services where the process that started them is killed and cannot."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable

__all__ = ["Guard"]

# `read` fails as soon as nobody can write any more. Each line names all processes of that moment.
_SCRIPT = "while read -r line; do pids=$line; done; for pid in $pids; do kill -TERM $pid; done"


class Guard:
    """A process that outlives this one by a moment, and then sends SIGTERM to what it was told of last."""

    def __init__(self) -> None:
        """Starts it, in a session of its own: Ctrl-C must not reach it."""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pids: Iterable[int]) -> None:
        """These processes and no others."""
        with contextlib.suppress(BrokenPipeError):  # somebody killed the guard; the services can do without
            if self._process.stdin:
                self._process.stdin.write(f"{' '.join(map(str, pids))}\n".encode())
                self._process.stdin.flush()

    def end(self) -> None:
        """Leaves every process as it is."""
        self.watch([])
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
