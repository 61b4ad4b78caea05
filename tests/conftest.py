"""Real processes of our services, for the tests that need them."""

import contextlib
import json
import os
import shutil
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

from fsr.cli.local_stack import running
from fsr.common.network.ports import join
from fsr_core.tiny import WEIGHTS
from helpers.preloaded import PreloadedService
from helpers.waiting import wait_until_generating


def _forget_the_callers_environment() -> None:
    """Keeps what the shell around the tests sets away from the services, commands and channels in them."""
    for_tests = ("FSR_TEST_ENGINE", "FSR_PICTURES", "FSR_LMMS_PYTHON")
    for_rich = ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")
    for name in [n for n in os.environ if n in for_rich or (n.startswith("FSR_") and n not in for_tests)]:
        del os.environ[name]
    for name in ("http_proxy", "https_proxy"):  # pip reads the names in capitals too, gRPC does not
        if value := os.environ.pop(name, None):
            os.environ.setdefault(name.upper(), value)
    no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, (no_proxy, "127.0.0.1", "localhost")))
    os.environ.setdefault("RAY_TMPDIR", "/tmp")  # Ray's sockets lie below it, and their paths must be short


_forget_the_callers_environment()
# Whoever ends the tests by SIGTERM, as `make test` does after Ctrl-C, ends the services that they started too. SIGINT
# is ignored where a shell starts the tests in the background, and tests send it to themselves and to services.
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.default_int_handler)


def free_ports(count: int = 1) -> int:
    """The first of `count` free ports in a row. No port is given twice, also not to other test runs on this machine.

    The ports lie below the ephemeral range, so that no outgoing connection takes one before its service listens, or
    while it restarts.
    """
    first = 10000 + 100 * (os.getpid() % 100)
    for base in range(first, 32000 - count):
        claims = [_claim(port) for port in range(base, base + count)]
        if None not in claims:
            for claim in claims:
                claim.detach()  # it stays open until this process ends
            return base
        for claim in filter(None, claims):
            claim.close()
    raise RuntimeError(f"no {count} free ports in a row from {first}")


def _claim(port: int) -> socket.socket | None:
    """A UDP socket on this port, or None if the port is taken.

    Our services use TCP alone: the UDP port of the same number tells test runs which ports are given.
    """
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind(("", port))
        socket.create_server(("", port)).close()
    except OSError:
        claim.close()
        return None
    return claim


@pytest.fixture(scope="session", name="free_ports")
def _free_ports():
    return free_ports


@pytest.fixture(scope="session")
def long_context(tmp_path_factory):
    """A folder with the embedded model, changed in one figure: it takes 32,768 tokens instead of 1,024.

    The answers are the same, and they can be longer than anything finishes while a test does something to it.
    """
    folder = tmp_path_factory.mktemp("long-context") / "fsr-tiny"
    shutil.copytree(WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 32_768
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def served_model(long_context):
    """Flags of a decoder that serves the model of the running system."""
    return ("--model", str(long_context), "--served-name", long_context.name)


@pytest.fixture(scope="session")
def running_system(tmp_path_factory, long_context):
    """A context in which a system with two decoders runs, with more environment variables.

    It gives the addresses and the folder of the logs.
    """

    @contextlib.contextmanager
    def system(**environment: str):
        logs = tmp_path_factory.mktemp("logs")
        with contextlib.ExitStack() as stack:
            with pytest.MonkeyPatch.context() as patch:  # for these services only, not for later tests
                for name, value in environment.items():
                    patch.setenv(name, value)
                addresses = running(str(long_context), 2, free_ports(30), logs, start_seconds=None)
                ready = stack.enter_context(addresses) | {"logs": logs}
            yield ready

    return system


@pytest.fixture(scope="session")
def system(running_system):
    """A running system. No test ends one of its processes but encoder replicas, which Ray replaces.

    Its services start behind a proxy that answers nobody: between them there must be none.
    """
    dead = "http://127.0.0.1:9"
    with running_system(http_proxy=dead, https_proxy=dead, no_proxy="", NO_PROXY="") as system:
        yield system


class Service:
    """One process of `fsr.<name>`, which can be killed, stopped and started again at the same address."""

    def __init__(self, name: str, log: Path, *flags: str, host: str = "127.0.0.1") -> None:
        self.address, self.metrics = join(host, free_ports()), join(host, free_ports())
        self.name, self.log = name, log
        ports = ["--port", self.address.rpartition(":")[2]]
        if name != "encoder":  # Ray has metrics of its own
            ports += ["--metrics-port", self.metrics.rpartition(":")[2]]
        if host != "127.0.0.1":
            ports += ["--host", host]
        self._arguments = (*ports, *flags)
        self._process: subprocess.Popen[bytes] | PreloadedService | None = None
        self.start()

    def start(self) -> None:
        """Does nothing if it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        if self.name != "encoder":
            self.log.touch()  # who reads it need not wait for the fork to open it
            self._process = PreloadedService(self.name, self._arguments, self.log)
            return
        command = [sys.executable, "-m", f"fsr.{self.name}", *self._arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGKILL, wait: float = 180) -> int:
        """The exit code."""
        if self._process.poll() is None:
            self.send(number)
        return self._process.wait(wait)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the series with these labels, on the metrics page now."""
        page = urllib.request.urlopen(f"http://{self.metrics}/metrics").read().decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def generated(self) -> float:
        """Tokens from decode steps of a decoder's engine so far, whether or not anybody takes them.

        The first token of an answer is not among them: it comes from the prefill.
        """
        return self.metric("fsr_decoder_batch_size_sum")

    def wait_until_generating(self, answers: int, tokens: int = 1) -> None:
        """Until a decoder works on so many answers at a time, and its engine has generated so many tokens meanwhile."""
        wait_until_generating([self], answers, tokens)

    def wait_until_it_says(self, text: str, seconds: float = 180) -> None:
        """Until `text` stands in its log. If it never does, or if the process has ended, the error shows the log."""
        end = time.monotonic() + seconds
        while text not in (said := self.log.read_text()):
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < end, f"{text!r} is not in its log (ended: {ended}): {said[-2000:]}"
            time.sleep(0.02)

    def wait_until_serving(self, wait: float = 300) -> None:
        """Until its health check says so."""
        end = time.monotonic() + wait
        with grpc.insecure_channel(self.address, options=[("grpc.max_reconnect_backoff_ms", 300)]) as channel:
            while time.monotonic() < end:
                assert self._process.poll() is None, self.log.read_text()[-2000:]
                with contextlib.suppress(grpc.RpcError):
                    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
                    if health.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(0.1)
        raise AssertionError(f"not serving: {self.log.read_text()[-2000:]}")


@contextlib.contextmanager
def _spawning(folder: Path):
    """Starts services; all of them end with the block."""
    started: list[Service] = []

    def start(name: str, *flags: str, log: Path | None = None, **options: str) -> Service:
        started.append(Service(name, log or folder / f"{name}-{len(started)}.log", *flags, **options))
        return started[-1]

    try:
        yield start
    finally:
        for service in started:
            service.end(signal.SIGTERM if service.name == "encoder" else signal.SIGKILL)  # Ray has children to see to


@pytest.fixture(scope="module")
def spawn(tmp_path_factory):
    """Starts services; all of them end with the module."""
    with _spawning(tmp_path_factory.mktemp("services")) as start:
        yield start


@pytest.fixture(scope="session")
def spawn_for_session(tmp_path_factory):
    """The same for services that live to the end of the session."""
    with _spawning(tmp_path_factory.mktemp("services")) as start:
        yield start


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """Makes a tiny checkpoint of a family of models, once."""
    import torch  # here: most tests need neither it nor transformers

    from helpers import checkpoints
    from helpers.benches import Bench

    made: dict[str, Bench] = {}

    def get(name):
        if name not in made:
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(name)
            made[name] = Bench(name, folder, (checkpoints.FAMILIES | checkpoints.TWINS)[name](folder))
        return made[name]

    return get
