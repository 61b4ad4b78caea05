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

_taken: set[int] = set()


def free_port() -> int:
    """A port below the ephemeral range, so that no outgoing connection takes it while its service restarts."""
    for port in range(21000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            if port not in _taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                _taken.add(port)
                return port
    raise RuntimeError("no free port")


class Service:
    """One process of `services.<name>`, which can be killed, stopped and started again at the same address."""

    def __init__(self, name: str, log: Path, *flags: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.name, self.log = name, log
        ports = ["--port", self.address.rpartition(":")[2]]
        if name != "encoder":  # Ray has metrics of its own
            ports += ["--metrics-port", self.metrics.rpartition(":")[2]]
        self._command = [sys.executable, "-m", f"services.{name}", *ports, *flags]
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

    def end(self, number: int = signal.SIGKILL, wait: float = 30) -> int:
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
