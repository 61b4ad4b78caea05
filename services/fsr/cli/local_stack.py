"""`fsr up`: all services on one machine, each a process of its own, stopped together."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from fsr.client.errors import ClientError
from fsr.client.sync import Client

__all__ = ["StartFailed", "running"]

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartFailed(Exception):
    """A service did not come up; the message says which, and where its log is."""


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _end(processes: dict[str, subprocess.Popen[bytes]], patience: float) -> None:
    """SIGTERM, gateway first and encoder last; after `patience` seconds what is left is killed with its group."""
    for process in reversed(processes.values()):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + patience
    for process in reversed(processes.values()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, end - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running(
    model: str,
    decoders: int,
    port: int,
    logs: Path,
    *,
    halves: Sequence[str] = (),
    encoder: Sequence[str] = (),
    wait: float | None = 180.0,
    stop_seconds: float = 30.0,
) -> Iterator[dict[str, str]]:
    """Starts an encoder, `decoders` decoders and a gateway, waits until a request could be answered, yields their
    addresses, and on leaving stops every process. `halves` and `encoder` are more flags, of encoder and decoders or of
    the encoder alone. It waits for `wait` seconds; None: as long as the processes live. Raises StartFailed.

    SIGINT, SIGTERM and SIGHUP are KeyboardInterrupt meanwhile, the first of them; later ones do nothing.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"--logs: cannot make {logs} ({error.strerror}); name a folder") from error
    ports = {"gateway": port, "encoder": port + 1, **{f"decoder-{i}": port + 11 + i for i in range(decoders)}}
    ports |= {"metrics": port + 5, "encoder-metrics": port + 6}
    ports |= {f"decoder-{i}-metrics": port + 21 + i for i in range(decoders)}
    for name, number in ports.items():
        if not _port_is_free(number):
            raise StartFailed(f"--port: {number} ({name}) is in use; choose another --port")
    address = {name: f"127.0.0.1:{number}" for name, number in ports.items()}
    commands = {
        "encoder": ["fsr.encoder", "--model", model, "--served-name", Path(model).name, "--port", str(port + 1)],
    }
    commands["encoder"] += ["--metrics-port", str(ports["encoder-metrics"]), *halves, *encoder]
    for i in range(decoders):
        name = f"decoder-{i}"
        commands[name] = ["fsr.decoder", "--model", model, "--served-name", Path(model).name]
        commands[name] += ["--port", str(ports[name]), "--metrics-port", str(ports[f"{name}-metrics"]), *halves]
    commands["gateway"] = ["fsr.gateway", "--port", str(port), "--metrics-port", str(ports["metrics"])]
    commands["gateway"] += ["--encoders", address["encoder"], "--discovery-seconds", "0.5"]
    commands["gateway"] += ["--decoders", ",".join(address[f"decoder-{i}"] for i in range(decoders))]
    processes: dict[str, subprocess.Popen[bytes]] = {}
    # What was ignored when this began stays so: under nohup, or in the background of a script.
    heeded = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    told = spawning = False

    def interrupted(number: int = 0, frame: FrameType | None = None) -> None:
        nonlocal told
        told = True
        if not spawning:
            _ignore(heeded)
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupted) for number in heeded}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as log:
                spawning = True  # an exception between the fork and the assignment would leave the process behind
                processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *command], stdout=log, stderr=log, start_new_session=True
                )
                spawning = False
            if told:
                interrupted()
        _wait_until_ready(processes, address["gateway"], decoders, logs, wait)
        yield address
    finally:
        _ignore(heeded)
        _end(processes, stop_seconds)
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(numbers: Iterable[int]) -> None:
    """A second Ctrl-C must not cut short the end of the services, which are in sessions of their own and would stay."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _wait_until_ready(
    processes: dict[str, subprocess.Popen[bytes]], gateway: str, decoders: int, logs: Path, wait: float | None
) -> None:
    end = math.inf if wait is None else time.monotonic() + wait
    with Client(gateway) as client:
        while time.monotonic() < end:
            for name, process in processes.items():
                if process.poll() is not None:
                    tail = (logs / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
                    reason = " ".join(tail).removeprefix("error: ")
                    raise StartFailed(f"{name} stopped: {reason} (log: {logs / f'{name}.log'})")
            with contextlib.suppress(ClientError):
                if any(m.encoders and m.decoders == decoders for m in client.models(timeout=2)):
                    return
            time.sleep(0.3)
    raise StartFailed(f"not ready within {wait:g} s; see the logs in {logs}, or wait longer (fsr up --start-seconds)")
