"""All services on one machine, each in a process of its own, started and stopped together.

Own code: process managers such as supervisord or honcho cannot tell when a request could be answered.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from fsr.client.errors import ClientError
from fsr.client.sync import Client

__all__ = ["StartFailed", "running"]

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.3
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Processes = dict[str, subprocess.Popen[bytes]]


class StartFailed(Exception):
    """A service did not start; the message names it and its log."""


@contextlib.contextmanager
def running(
    model: str,
    decoders: int,
    port: int,
    logs: Path,
    *,
    http_port: int | None = None,
    model_flags: Sequence[str] = (),
    encoder_flags: Sequence[str] = (),
    decoder_flags: Sequence[str] = (),
    decoder_python: str = sys.executable,
    start_seconds: float | None = 180.0,
    stop_seconds: float = 30.0,
) -> Iterator[dict[str, str]]:
    """Starts an encoder, `decoders` decoders and a gateway; yields their addresses once a request could be answered.

    On leaving it stops every process and kills those that still run after `stop_seconds`. `model_flags` go to the
    encoder and the decoders, `encoder_flags` and `decoder_flags` to these alone. `decoder_python` runs the decoders.
    HTTP is on `http_port`; the default is `port` + 2. With `start_seconds` None it waits as long as the processes live.
    Raises StartFailed.

    Meanwhile the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones do nothing.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"--logs: cannot make {logs} ({error.strerror}); name a folder") from error
    ports = _ports(port, http_port, decoders)
    if list(ports.values()).count(ports["http"]) > 1:
        raise StartFailed(f"--http-port: another service uses {http_port}; choose one outside {port}-{port + 28}")
    for name, number in ports.items():
        if not _port_is_free(number):
            option = "--http-port" if name == "http" and http_port else "--port"
            raise StartFailed(f"{option}: {number} ({name}) is in use; choose another {option}")
    addresses = {name: f"{_HOST}:{number}" for name, number in ports.items()}
    processes: Processes = {}
    with _StopSignals() as signals:
        try:
            commands = _commands(model, decoders, ports, addresses, model_flags, encoder_flags, decoder_flags)
            for name, command in commands.items():
                python = decoder_python if name in _decoder_names(decoders) else sys.executable
                # An exception between the fork and the assignment would leave the process behind.
                with (logs / f"{name}.log").open("wb") as log, signals.deferred():
                    processes[name] = subprocess.Popen(
                        [python, "-m", *command], stdout=log, stderr=log, start_new_session=True
                    )
            _wait_until_ready(processes, addresses["gateway"], decoders, logs, start_seconds)
            yield addresses
        finally:
            signals.ignore()
            _stop(processes, stop_seconds)


def _ports(first: int, http: int | None, decoders: int) -> dict[str, int]:
    ports = {
        "gateway": first,
        "http": http or first + 2,
        "encoder": first + 1,
        **{f"decoder-{i}": first + 11 + i for i in range(decoders)},
    }
    ports |= {"metrics": first + 5, "encoder-metrics": first + 6}
    return ports | {f"decoder-{i}-metrics": first + 21 + i for i in range(decoders)}


def _decoder_names(decoders: int) -> list[str]:
    return [f"decoder-{i}" for i in range(decoders)]


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((_HOST, port)) != 0


def _commands(
    model: str,
    decoders: int,
    ports: dict[str, int],
    addresses: dict[str, str],
    model_flags: Sequence[str],
    encoder_flags: Sequence[str],
    decoder_flags: Sequence[str],
) -> dict[str, list[str]]:
    """The module and flags of each service, in the order in which they start."""

    def listen(port: str, metrics: str) -> list[str]:
        return ["--port", str(ports[port]), "--metrics-port", str(ports[metrics])]

    names = _decoder_names(decoders)
    model_options = ["--model", model, "--served-name", Path(model).name, *model_flags]
    commands = {
        "encoder": ["fsr.encoder", *listen("encoder", "encoder-metrics"), *model_options, *encoder_flags],
        **{name: ["fsr.decoder", *listen(name, f"{name}-metrics"), *model_options, *decoder_flags] for name in names},
        "gateway": ["fsr.gateway", *listen("gateway", "metrics"), "--http-port", str(ports["http"])],
    }
    commands["gateway"] += ["--discovery-seconds", "0.5", "--encoders", addresses["encoder"]]
    commands["gateway"] += ["--decoders", ",".join(addresses[name] for name in names)]
    return commands


class _StopSignals:
    """Within its block the first stop signal raises KeyboardInterrupt, and later ones do nothing.

    Signals that were ignored before stay ignored, as under nohup or in the background of a script.
    """

    def __enter__(self) -> _StopSignals:
        self._received = self._deferring = False
        self._numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in self._numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """A second Ctrl-C must not interrupt the stop: the services are in sessions of their own and would stay."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within this block takes effect at the end of the block."""
        self._deferring = True
        yield
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


def _wait_until_ready(
    processes: Processes, gateway: str, decoders: int, logs: Path, start_seconds: float | None
) -> None:
    deadline = math.inf if start_seconds is None else time.monotonic() + start_seconds
    with Client(gateway) as client:
        while time.monotonic() < deadline:
            for name, process in processes.items():
                if process.poll() is not None:
                    log = logs / f"{name}.log"
                    last_lines = log.read_text(errors="replace").strip().splitlines()[-1:]
                    reason = " ".join(last_lines).removeprefix("error: ")
                    raise StartFailed(f"{name} stopped: {reason} (log: {log})")
            with contextlib.suppress(ClientError):
                if any(m.encoders and m.decoders == decoders for m in client.models(timeout=2)):
                    return
            time.sleep(_POLL_SECONDS)
    remedy = f"see the logs in {logs}, or wait longer (fsr up --start-seconds)"
    raise StartFailed(f"not ready within {start_seconds:g} s; {remedy}")


def _stop(processes: Processes, seconds: float) -> None:
    """Sends SIGTERM, to the gateway first and the encoder last; kills the process groups that outlive `seconds`."""
    for process in reversed(processes.values()):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    for process in reversed(processes.values()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
