"""Gateways and decoders as real processes that need not import their libraries: they are forks of one that has.

An import of torch and transformers takes seconds of CPU, that of a gateway one, and the tests start dozens of each.
`fsr up`, the demo and the images start theirs as users do.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fsr.gateway.server", "fsr.decoder.server", "fsr.decoder.engines.transformers"])


def _run(name: str, arguments: tuple[str, ...], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [f"fsr.{name}", *arguments]
    runpy.run_module(f"fsr.{name}", run_name="__main__", alter_sys=True)


class PreloadedService:
    """`python -m fsr.<name>` with these arguments; what it prints is appended to the log. Used like a Popen."""

    def __init__(self, name: str, arguments: tuple[str, ...], log: Path) -> None:
        self._name = name
        self._process = _CONTEXT.Process(target=_run, args=(name, arguments, str(log), dict(os.environ)))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"fsr.{self._name}", timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
