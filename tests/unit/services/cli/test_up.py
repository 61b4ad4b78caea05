"""`fsr up` over processes that stand for its services."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fsr.cli import main as cli
from fsr.cli.local_stack import StartFailed, running
from fsr.cli.main import app
from fsr.client.types import Usage
from fsr.encoder.settings import EncoderSettings
from fsr.v1 import gateway_pb2

SLEEPS, FAILS = "import time; time.sleep(60)", "raise SystemExit('error: no such model')"


@pytest.fixture
def port(free_ports):
    return str(free_ports(30))


@pytest.fixture
def stand_ins(monkeypatch):
    """Has `running` start what is given instead of each service, and call `then` before it learns of the process."""
    started, popen = {}, subprocess.Popen

    def use(code, then=lambda: None):
        def start(command, **options):
            name = command[2].removeprefix("fsr.")
            started[name] = command, popen([sys.executable, "-c", code.get(name, SLEEPS)], **options)
            then()
            return started[name][1]

        monkeypatch.setattr("fsr.cli.local_stack.subprocess.Popen", start)
        return started

    yield use
    for _, process in started.values():
        process.kill()
        process.wait()


def test_what_is_not_ready_in_time_is_stopped_and_told_with_its_logs(stand_ins, port, tmp_path):
    started = stand_ins({})
    done = CliRunner().invoke(app, ["up", "--start-seconds", "1", "--port", port, "--logs", str(tmp_path)])
    assert done.exit_code == 1
    assert f"error: not ready within 1 s; see the logs in {tmp_path}, or wait longer" in done.stderr
    assert len(started) == 3 and all(process.poll() is not None for _, process in started.values())


def test_without_a_bound_a_service_that_dies_ends_the_wait(stand_ins, port, tmp_path):
    stand_ins({"decoder": FAILS})
    with (
        pytest.raises(StartFailed, match="decoder-0 stopped: no such model"),
        running("fsr-tiny", 1, int(port), tmp_path, wait=None),
    ):
        pass


def test_a_signal_while_a_service_is_spawned_leaves_none_behind(stand_ins, port, tmp_path):
    """It comes after the fork, and before anybody holds the process."""
    started = stand_ins({}, then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), running("fsr-tiny", 1, int(port), tmp_path):
        pass
    assert list(started) == ["encoder"]
    assert started["encoder"][1].poll() == -signal.SIGTERM


def test_options_of_the_family_reach_the_encoder(stand_ins, port, tmp_path):
    given = {"video_newlines": "row"}
    started = stand_ins({"decoder": FAILS})
    flags = ["--port", port, "--logs", str(tmp_path), "--family-options", json.dumps(given)]
    assert CliRunner().invoke(app, ["up", *flags]).exit_code == 1
    assert EncoderSettings.load(started["encoder"][0][3:]).family_options == given
    assert "--family-options" not in started["decoder"][0]


@pytest.mark.parametrize(
    ("given", "says"), [("video_newlines=row", "is no JSON"), ('["row"]', "is no object"), ('{"a": 1}', "is no object")]
)
def test_options_of_the_family_that_are_none_are_named(given, says):
    done = CliRunner().invoke(app, ["up", "--family-options", given])
    assert done.exit_code == 1 and says in done.stderr
    assert done.stderr.startswith("error: --family-options: ") and done.stderr.count("\n") == 1


@pytest.fixture
def served(monkeypatch):
    addresses = {"gateway": "127.0.0.1:1"}
    monkeypatch.setattr(cli, "running", lambda *_, **__: nullcontext(addresses))
    return addresses


def test_up_tells_its_addresses_as_json(served, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "pause", interrupted)
    done = CliRunner().invoke(app, ["up", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == served


def test_the_demo_tells_answers_and_savings_as_json(served, monkeypatch):
    usage = Usage.of(gateway_pb2.Usage(visual_tokens_in=144, visual_tokens_kept=16))

    def ask(self, picture, question, budget):
        return SimpleNamespace(text=f" {budget}\n", usage=usage)

    monkeypatch.setattr(cli.Client, "ask", ask)
    done = CliRunner().invoke(app, ["demo", "--budget", "16", "--json"])
    told = json.loads(done.stdout)
    assert {(row["all_tokens"], row["budget"]) for row in told["answers"]} == {("1.0", "16")}
    assert all(row["question"] and row["true_answer"] for row in told["answers"])
    assert told["budget"] == "16" and told["usage"]["visual_tokens_kept"] == 16
