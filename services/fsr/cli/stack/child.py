"""One service's process and its log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from fsr.cli.stack.plan import Command

__all__ = ["Child"]

_TAIL_BYTES = 16_384
_USAGE_HINT = "see --help for every option"


def _session(leader: int) -> list[int]:
    """The processes in the session of a service, on Linux. Ray's workers have groups of their own, and outlive Ray."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(ValueError, OSError):
            if os.getsid(int(name)) == leader:
                found.append(int(name))
    return found


class Child:
    """A service that can be started again; its log goes on behind the lines of the process before."""

    def __init__(self, name: str, command: Command, log: Path) -> None:
        """Empties the log. Raises OSError if it cannot be written."""
        self.name, self.log = name, log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0  # where the log of this process begins
        log.write_bytes(b"")

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                self._command.arguments,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | self._command.environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """None if it does not run."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        if self._process is not None and self.running:
            self._process.terminate()

    def end(self, seconds: float) -> None:
        """Waits for its end, at most so long, and kills what it has left behind."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in _session(self._process.pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    @property
    def fate(self) -> str:
        """How it ended: `ended with status 1`, `was killed by SIGKILL`."""
        code = self._process.poll() if self._process is not None else None
        if code is None:
            return "runs"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    def last_lines(self, most: int) -> list[str]:
        """The last lines that this process has written, without empty ones."""
        with self.log.open("rb") as log:
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-most:]

    @property
    def reason(self) -> str:
        """Why it ended, in one line: the errors that it names, else its last line, else how it ended."""
        lines = [line for line in self.last_lines(50) if line != _USAGE_HINT]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return "; ".join(errors) or (lines[-1] if lines else self.fate)
