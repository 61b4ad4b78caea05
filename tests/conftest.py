"""Real processes of our services, for the tests that need them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families


def _forget_the_callers_environment() -> None:
    """What the shell around the tests sets must not reach the services, commands and channels in them."""
    ours = ("FSR_TEST_ENGINE", "FSR_PICTURES", "FSR_LMMS_PYTHON")
    of_rich = ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
    for name in [n for n in os.environ if n in of_rich or (n.startswith("FSR_") and n not in ours)]:
        del os.environ[name]
    for name in ("http_proxy", "https_proxy"):  # pip is content with the names in capitals, which gRPC does not heed
        if value := os.environ.pop(name, None):
            os.environ.setdefault(name.upper(), value)
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, (known, "127.0.0.1", "localhost")))
    os.environ.setdefault("RAY_TMPDIR", "/tmp")  # its sockets lie below it, and their paths must be short


_forget_the_callers_environment()
_taken: set[int] = set()


def free_ports(count: int = 1) -> int:
    """The first of so many free ports in a row, never given before.

    They lie below the ephemeral range, so that no outgoing connection takes one before its service listens, or while
    it restarts.
    """
    first = 10000 + 100 * (os.getpid() % 100)
    for base in range(first, 32000 - count):
        ports = range(base, base + count)
        if _taken.isdisjoint(ports) and all(map(_is_free, ports)):
            _taken.update(ports)
            return base
    raise RuntimeError(f"no {count} free ports in a row from {first}")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session", name="free_ports")
def _free_ports():
    return free_ports


class Service:
    """One process of `fsr.<name>`, which can be killed, stopped and started again at the same address."""

    def __init__(self, name: str, log: Path, *flags: str) -> None:
        self.address = f"127.0.0.1:{free_ports()}"
        self.metrics = f"127.0.0.1:{free_ports()}"
        self.name, self.log = name, log
        ports = ["--port", self.address.rpartition(":")[2]]
        if name != "encoder":  # Ray has metrics of its own
            ports += ["--metrics-port", self.metrics.rpartition(":")[2]]
        self._command = [sys.executable, "-m", f"fsr.{name}", *ports, *flags]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Does nothing where it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGKILL, wait: float = 120) -> int:
        """The exit code."""
        if self._process.poll() is None:
            self.send(number)
        return self._process.wait(wait)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of its series with these labels, on its metrics page now."""
        page = urllib.request.urlopen(f"http://{self.metrics}/metrics").read().decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def wait_until_serving(self, wait: float = 180) -> None:
        """Until its health says so."""
        end = time.monotonic() + wait
        with grpc.insecure_channel(self.address, options=[("grpc.max_reconnect_backoff_ms", 300)]) as channel:
            while time.monotonic() < end:
                assert self._process.poll() is None, self.log.read_text()[-2000:]
                with contextlib.suppress(grpc.RpcError):
                    told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if told.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(0.1)
        raise AssertionError(f"not serving: {self.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def spawn(tmp_path_factory):
    """Starts services; at the end of the module all are gone."""
    folder, started = tmp_path_factory.mktemp("services"), []

    def start(name: str, *flags: str) -> Service:
        started.append(Service(name, folder / f"{name}-{len(started)}.log", *flags))
        return started[-1]

    yield start
    for service in started:
        service.end(signal.SIGTERM if service.name == "encoder" else signal.SIGKILL)  # Ray has children to see to
