"""`fsr up` with stand-ins for its services."""

import json
import os
import signal
import subprocess
import sys
from contextlib import chdir, nullcontext

import pytest
from typer.testing import CliRunner

from fsr.cli.local_stack import StartFailed, running
from fsr.cli.main import app
from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings

SLEEPS, FAILS = "import time; time.sleep(60)", "raise SystemExit('error: no such model')"


@pytest.fixture
def port(free_ports):
    return str(free_ports(30))


@pytest.fixture
def stand_ins(monkeypatch):
    """Makes `running` start the given code instead of each service, and call `then` before it holds the process."""
    started, popen = {}, subprocess.Popen

    def use(code, then=lambda: None):
        def start(command, **options):
            if command[1] != "-m":
                return popen(command, **options)
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


def test_services_not_ready_in_time_are_stopped_and_their_logs_named(stand_ins, port, tmp_path):
    started = stand_ins({})
    done = CliRunner().invoke(app, ["up", "--start-seconds", "1", "--port", port, "--logs", str(tmp_path)])
    assert done.exit_code == 1
    assert f"error: not ready within 1 s; see the logs in {tmp_path}, or wait longer" in done.stderr
    assert len(started) == 3 and all(process.poll() is not None for _, process in started.values())


def test_service_that_dies_ends_a_wait_without_limit(stand_ins, port, tmp_path):
    stand_ins({"decoder": FAILS})
    with (
        pytest.raises(StartFailed, match="decoder-0 stopped: no such model"),
        running("fsr-tiny", 1, int(port), tmp_path, start_seconds=None),
    ):
        pass


def test_signal_while_a_service_is_spawned_leaves_none_behind(stand_ins, port, tmp_path):
    """The signal comes after the fork, and before the process is held."""
    started = stand_ins({}, then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), running("fsr-tiny", 1, int(port), tmp_path):
        pass
    assert list(started) == ["encoder"]
    assert started["encoder"][1].poll() == -signal.SIGTERM


def test_family_options_reach_the_encoder_alone(stand_ins, port, tmp_path):
    given = {"video_newlines": "row"}
    started = stand_ins({"decoder": FAILS})
    flags = ["--port", port, "--logs", str(tmp_path), "--family-options", json.dumps(given)]
    assert CliRunner().invoke(app, ["up", *flags]).exit_code == 1
    assert EncoderSettings.load(started["encoder"][0][3:]).family_options == given
    assert "--family-options" not in started["decoder"][0]


@pytest.mark.parametrize(
    ("given", "says"), [("video_newlines=row", "is no JSON"), ('["row"]', "is no object"), ('{"a": 1}', "is no object")]
)
def test_wrong_family_options_are_refused_in_one_line(given, says):
    done = CliRunner().invoke(app, ["up", "--family-options", given])
    assert done.exit_code == 1 and says in done.stderr
    assert done.stderr.startswith("error: --family-options: ") and done.stderr.count("\n") == 1


@pytest.fixture
def vllm_environment(tmp_path):
    """A Python that finds a module called vllm, where `make test-vllm` builds one. Returns its path."""
    python, site = tmp_path / ".venv-vllm/bin/python", tmp_path / "site"
    python.parent.mkdir(parents=True)
    site.mkdir()
    (site / "vllm.py").touch()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("named", [True, False])
def test_decoders_with_vllm_run_in_an_environment_of_their_own(stand_ins, port, tmp_path, vllm_environment, named):
    started = stand_ins({"gateway": FAILS})
    flags = ["--engine", "vllm", "--engine-options", '{"enforce_eager": true}', "--decoders", "2", "--port", port]
    flags += ["--decoder-python", str(vllm_environment)] if named else []
    with chdir(tmp_path):
        done = CliRunner().invoke(app, ["up", "--logs", str(tmp_path), *flags])
    assert "gateway stopped: no such model" in done.stderr
    pythons = [command[0] for command, _ in started.values()]
    assert pythons == [sys.executable, str(vllm_environment), sys.executable]
    settings = DecoderSettings.load(started["decoder"][0][3:])
    assert (settings.engine, settings.engine_options) == ("vllm", {"enforce_eager": True})
    assert "--engine" not in started["encoder"][0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--engine: vllm is not installed here; install fsr-gateway[vllm]"),
        (
            ["--decoder-python", sys.executable],
            f"--decoder-python: {sys.executable} is no Python with fsr-gateway[vllm]",
        ),
        (["--decoder-python", "/no/python"], "--decoder-python: /no/python is no Python"),
        (["--decoder-python", "/dev/null"], "--decoder-python: /dev/null is no Python"),
    ],
)
def test_vllm_that_is_not_installed_is_refused_in_one_line(tmp_path, flags, says):
    with chdir(tmp_path):
        done = CliRunner().invoke(app, ["up", "--engine", "vllm", *flags])
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


@pytest.fixture
def served(monkeypatch):
    addresses = {"gateway": "127.0.0.1:1", "http": "127.0.0.1:3"}
    monkeypatch.setattr("fsr.cli.up.running", lambda *_, **__: nullcontext(addresses))
    return addresses


def test_up_prints_its_addresses_as_json(served, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "pause", interrupted)
    done = CliRunner().invoke(app, ["up", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == served


def test_http_port_of_another_service_is_refused(tmp_path):
    flags = ["--port", "20050", "--http-port", "20051", "--logs", str(tmp_path)]
    done = CliRunner().invoke(app, ["up", *flags])
    assert done.exit_code == 1 and "error: --http-port: another service uses 20051; choose one outside" in done.stderr


def test_logs_folder_that_is_a_file_is_refused(frames):
    done = CliRunner().invoke(app, ["up", "--logs", str(frames / "f1.PNG")])
    assert done.exit_code == 1 and "error: --logs: cannot make" in done.stderr
