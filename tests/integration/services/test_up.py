"""The services that `fsr up` starts: a real gateway, and stand-ins for its replicas, which take long to load."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import psutil
import pytest
import trustme
from typer.testing import CliRunner

from fsr.cli.local_stack import StartFailed, started
from fsr.cli.main import app
from fsr.cli.stack.plan import Plan
from fsr.cli.stack.readiness import missing
from helpers import stand_ins as replica
from helpers.stand_ins import StandIns
from helpers.waiting import until

SYSTEM = {"encoder": "replica", "decoder": "replica", "gateway": "real"}
# A replica that does something first.
REPLICA = f"""
import os, runpy, signal, sys
{{}}
sys.argv.insert(1, "decoder")
runpy.run_path({replica.__file__!r}, run_name="__main__")
"""
# Services that run until this process is killed; it prints their process ids.
KEEPS_RUNNING = f"""
import pathlib, sys, time, pytest
from fsr.cli.local_stack import started
from fsr.cli.stack.plan import Plan
from helpers.stand_ins import StandIns

with pytest.MonkeyPatch.context() as patch:
    stand_ins = StandIns(patch)
    stand_ins.use({SYSTEM})
    with started(Plan(port=int(sys.argv[1])), pathlib.Path(sys.argv[2]), print):
        print(*(process.pid for process in stand_ins.processes()), flush=True)
        time.sleep(600)
"""


class Lines(list):
    """What was reported; waits for a line."""

    def wait(self, text: str, count: int = 1) -> None:
        until(lambda: sum(text in line for line in self) >= count)


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def port(free_ports):
    return free_ports(30)


@pytest.fixture
def stand_ins(monkeypatch):
    stand_ins = StandIns(monkeypatch)
    yield stand_ins
    stand_ins.end()


@contextmanager
def doing(work):
    """Runs `work` beside the block, then sends this process a stop signal, as Ctrl-C does."""

    def run():
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


def test_up_when_callers_need_keys_and_certificates_gets_ready(stand_ins, port, tmp_path, lines):
    """The wait for the gateway is no caller: it needs none of them, and could not know a key by its hash."""
    stand_ins.use(SYSTEM)
    authority, keys = trustme.CA(), tmp_path / "keys.yaml"
    server, ca = tmp_path / "server.pem", tmp_path / "ca.pem"
    authority.issue_cert("gateway.test").private_key_and_cert_chain_pem.write_to_path(server)
    authority.cert_pem.write_to_path(ca)
    keys.write_text(f"keys: [{{sha256: {'ab' * 32}}}]")
    options = {"tls_cert": server, "tls_key": server, "tls_client_ca": ca, "api_keys_file": keys}
    gateway = {name: str(value) for name, value in options.items()}
    with started(Plan(port=port, decoders=2, gateway=gateway), tmp_path / "logs", lines.append) as stack:
        assert missing(stack.plan) == []
    assert lines == []


def test_service_that_is_killed_is_named_and_starts_again(stand_ins, port, tmp_path, lines, monkeypatch):
    monkeypatch.setenv("FSR_GATEWAY_API_KEYS", "k")
    stand_ins.use(SYSTEM)

    def kill_both():
        stand_ins.processes("decoder")[1].kill()
        lines.wait("ready again", 1)
        stand_ins.processes("gateway")[0].kill()
        lines.wait("ready again", 2)

    with (
        pytest.raises(KeyboardInterrupt),
        started(Plan(port=port, decoders=2), tmp_path, lines.append) as stack,
        doing(kill_both),
    ):
        stack.watch()
    log = tmp_path / "decoder-1.log"
    said = f"stand-in decoder at {port + 12}"
    assert lines[0] == f"decoder-1 was killed by SIGKILL; the end of its log {log}:\n  {said}\nstarts again in 1 s"
    assert log.read_text().splitlines() == [said, said]
    assert [line.partition(";")[0] for line in lines if "killed" in line][1:] == ["gateway was killed by SIGKILL"]
    assert all(process.poll() is not None for process in stand_ins.processes())


def test_service_that_dies_again_and_again_waits_longer_each_time(stand_ins, port, tmp_path, lines):
    full = tmp_path / "full"
    stand_ins.use(
        SYSTEM | {"decoder": REPLICA.format(f"os.path.exists({str(full)!r}) and sys.exit('error: no memory')")}
    )

    def kill():
        full.touch()
        stand_ins.processes("decoder")[0].kill()
        lines.wait("starts again in 4 s")

    with pytest.raises(KeyboardInterrupt), started(Plan(port=port), tmp_path, lines.append) as stack, doing(kill):
        stack.watch()
    assert "decoder-0 ended with status 1" in lines[-1] and "  error: no memory" in lines[-1]
    assert [line.rpartition("in ")[2] for line in lines] == ["1 s", "2 s", "4 s"]


def test_service_that_ends_without_restarts_ends_everything(stand_ins, port, tmp_path, monkeypatch):
    stand_ins.use(SYSTEM)
    monkeypatch.setattr("fsr.cli.up._greet", lambda *_, **__: stand_ins.processes("decoder")[0].kill())
    done = CliRunner().invoke(app, ["up", "--port", str(port), "--logs", str(tmp_path), "--no-restart", "--json"])
    assert done.exit_code == 1 and json.loads(done.stdout)["gateway"] == f"127.0.0.1:{port}"
    assert "error: decoder-0 was killed by SIGKILL; the end of its log" in done.stderr
    assert all(process.poll() is not None for process in stand_ins.processes())


def test_services_when_what_started_them_is_killed_end_by_themselves(port, tmp_path):
    command = [sys.executable, "-c", KEEPS_RUNNING, str(port), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        services = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(services) == 3
    until(lambda: not any(runs(service) for service in services))


def runs(process):
    """A process that nobody has waited for yet does not run."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_error_of_a_service_at_its_start_has_the_names_that_were_typed(stand_ins, port, tmp_path):
    """A service prints each wrong option, and then where help is."""
    stand_ins.use(SYSTEM)
    flags = ["--gateway-option", "max-requests=x", "--gateway-option", "max_waiting=-1", "--port", str(port)]
    done = CliRunner().invoke(app, ["up", "--logs", str(tmp_path), *flags])
    assert done.exit_code == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "gateway stopped: --gateway-option max_requests: Input should be a valid integer" in line
    assert "; --gateway-option max_waiting: " in line
    unknown = CliRunner().invoke(app, ["up", "--logs", str(tmp_path), *flags[4:], "--gateway-option", "max_request=3"])
    assert "gateway stopped: --gateway-option max_request: is no option of this service" in unknown.stderr


def test_wait_without_news_says_what_it_waits_for(stand_ins, port, tmp_path, lines, monkeypatch):
    monkeypatch.setattr("fsr.cli.stack.stack._NEWS_SECONDS", 0.2)
    stand_ins.use({"encoder": "import time; print('loading', flush=True); time.sleep(600)", "decoder": "replica"})
    with pytest.raises(StartFailed), started(Plan(port=port), tmp_path, lines.append, start_seconds=5):
        pass
    assert lines[-1].startswith("waiting for encoder, gateway (")
    assert lines[-1].endswith(" s); the log of encoder says: loading")


def test_proxy_of_the_environment_is_none_between_services(stand_ins, port, tmp_path, lines, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    stand_ins.use(SYSTEM)
    with started(Plan(port=port), tmp_path, lines.append) as stack:
        assert missing(stack.plan) == []
