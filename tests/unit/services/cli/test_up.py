"""`fsr up`: its options, and what it starts, with stand-ins for its services."""

import os
import signal
import socket
import sys
from contextlib import chdir
from inspect import signature

import psutil
import pytest
from typer.testing import CliRunner

from fsr.cli.local_stack import StartFailed, running
from fsr.cli.main import app
from fsr.cli.stack.child import Child
from fsr.cli.stack.plan import Command, Plan
from fsr.cli.stack.signals import StopSignals
from fsr.cli.up import up
from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.options.settings import GatewaySettings
from helpers.certificates import Authority
from helpers.waiting import until

FAILS = "raise SystemExit('error: no such model')"
SETTINGS = {"gateway": GatewaySettings, "encoder": EncoderSettings, "decoder": DecoderSettings}


@pytest.fixture
def settings(stand_ins, port, tmp_path, monkeypatch):
    """The settings of each service that `fsr up` starts with these flags."""

    def settings(*flags):
        started = stand_ins.use({"gateway": FAILS})
        done = CliRunner().invoke(app, ["up", "--port", port, "--logs", str(tmp_path / "logs"), *flags])
        assert "gateway stopped: no such model" in done.stderr, done.stderr
        found = {}
        for service, starts in started.items():
            command, environment, _ = starts[-1]
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                found[service] = SETTINGS[service].load(command[3:])
        return found

    return settings


def test_services_not_ready_in_time_are_stopped_and_their_logs_named(stand_ins, port, tmp_path):
    stand_ins.use({})
    done = CliRunner().invoke(app, ["up", "--start-seconds", "1", "--port", port, "--logs", str(tmp_path)])
    assert done.exit_code == 1
    assert f"error: not ready within 1 s; see the logs in {tmp_path}, or wait longer" in done.stderr
    assert len(stand_ins.processes()) == 3 and all(process.poll() is not None for process in stand_ins.processes())


def test_service_that_dies_ends_a_wait_without_limit(stand_ins, port, tmp_path):
    stand_ins.use({"decoder": FAILS})
    with (
        pytest.raises(StartFailed, match="decoder-0 stopped: no such model"),
        running("fsr-tiny", 1, int(port), tmp_path, start_seconds=None),
    ):
        pass


def test_signal_while_a_service_is_spawned_leaves_none_behind(stand_ins, port, tmp_path):
    """The signal comes after the fork, and before the process is held."""
    started = stand_ins.use({}, then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), running("fsr-tiny", 1, int(port), tmp_path):
        pass
    assert list(started) == ["encoder"]
    assert stand_ins.processes()[0].poll() == -signal.SIGTERM


class Interrupted:
    """A signal comes in its destructor, where no exception leaves."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signal_whose_exception_is_lost_ends_the_next_wait():
    with StopSignals() as signals:
        Interrupted()
        with pytest.raises(KeyboardInterrupt):
            signals.sleep(0)


def test_what_a_service_leaves_behind_ends_with_it(tmp_path):
    """As Ray's workers, which have process groups of their own and would hold their port for a while."""
    spawn = "subprocess.Popen(['sleep', '600'], process_group=0)"
    code = f"import subprocess, time; print({spawn}.pid, flush=True); time.sleep(600)"
    child = Child("service", Command([sys.executable, "-c", code], {}), tmp_path / "log")
    child.start()
    until(lambda: child.last_lines(1))
    left = psutil.Process(int(child.last_lines(1)[0]))
    os.kill(psutil.Process(left.pid).ppid(), signal.SIGKILL)
    until(lambda: not child.running)
    assert left.is_running() and child.fate == "was killed by SIGKILL"
    child.end(0)
    psutil.wait_procs([left], timeout=60)
    assert not left.is_running()


def test_options_of_up_reach_the_services_that_they_are_for(settings, free_ports, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    folder = Authority(tmp_path).issue("mine", "127.0.0.1")
    cert, key, ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
    http = free_ports()
    found = settings(
        *("--model", "org/name", "--served-name", "mine", "--device", "meta", "--dtype", "bf16", "--clip", "none"),
        *("--kv-memory", "64MiB", "--encoders", "3", "--host", "0.0.0.0", "--http-port", str(http)),
        *("--api-keys", "a,b", "--api-keys-file", str(keys), "--tls-cert", str(cert), "--tls-key", str(key)),
        *(
            "--tls-client-ca",
            str(ca),
            "--inner-tls",
            str(folder),
            "--insecure",
            "--family-options",
            '{"video_newlines": "row"}',
        ),
        *("--gateway-option", "http-page=false", "--gateway-option", 'default_options={"rho": 0.5}'),
        *("--encoder-option", "cache_mb=7", "--encoder-option", "device=cpu"),
        *("--decoder-option", "max_running=9", "--decoder-option", "log_level=debug"),
    )
    gateway, encoder, decoder = (found[name] for name in ("gateway", "encoder", "decoder"))
    assert (gateway.host, gateway.http_port, gateway.http_page) == ("0.0.0.0", http, False)
    assert gateway.api_keys == ["a", "b"] and gateway.default_options == {"rho": 0.5}
    assert gateway.api_keys_file == keys and gateway.insecure
    assert (gateway.tls_cert, gateway.tls_key, gateway.tls_client_ca) == (cert, key, ca)
    assert (gateway.replica_tls_cert, gateway.replica_tls_key, gateway.replica_tls_ca) == (cert, key, ca)
    for replica in (encoder, decoder):
        assert (replica.tls_cert, replica.tls_key, replica.tls_client_ca) == (cert, key, ca)
    assert encoder.host == decoder.host == "127.0.0.1"  # callers need the gateway alone
    assert encoder.model == decoder.model == "org/name" and encoder.served_name == decoder.served_name == "mine"
    assert encoder.dtype == decoder.dtype == "bf16" and (encoder.device, decoder.device) == ("cpu", "meta")
    assert (encoder.clip, encoder.family_options, encoder.cache_mb) == ("none", {"video_newlines": "row"}, 7)
    assert (encoder.min_replicas, encoder.max_replicas, encoder.num_cpus) == (3, 3, 0)
    assert (decoder.kv_memory, decoder.max_running, decoder.log_level) == (64 * 2**20, 9, "debug")


def test_encoders_on_a_gpu_share_it(settings):
    assert settings("--device", "cuda:0", "--encoders", "2")["encoder"].num_gpus == 0.5


def test_keys_are_in_no_command_line(stand_ins, port, tmp_path):
    started = stand_ins.use({"gateway": FAILS})
    CliRunner().invoke(app, ["up", "--port", port, "--logs", str(tmp_path), "--api-keys", "open-sesame"])
    assert not [starts for starts in started.values() if "open-sesame" in " ".join(starts[0][0])]


def test_model_without_a_name_has_the_same_one_everywhere(settings, tmp_path):
    (tmp_path / "org" / "llava").mkdir(parents=True)
    for model, name in (("org/name", "org/name"), (str(tmp_path / "org" / "llava"), "llava")):
        found = settings("--model", model)
        assert found["encoder"].announced_name == found["decoder"].announced_name == name


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gateway-option", "port=1"], "--gateway-option: port is set by fsr up; use --port"),
        (["--gateway-option", "http-port=1"], "--gateway-option: http_port is set by fsr up; use --http-port"),
        (["--decoder-option", "metrics_port=1"], "--decoder-option: metrics_port is set by fsr up; use --port"),
        (["--encoder-option", "threads"], "--encoder-option: 'threads' is no name=value"),
        (["--encoder-option", "=1"], "--encoder-option: '=1' is no name=value"),
        (["--inner-tls", "/no"], "--inner-tls: no file /no/tls.crt; the folder must hold tls.crt, tls.key and ca.crt"),
    ],
)
def test_wrong_option_for_a_service_is_refused_in_one_line(flags, says):
    done = CliRunner().invoke(app, ["up", *flags])
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["gateway", "encoder", "http", "metrics", "encoder-metrics", "decoder-0"])
def test_port_of_an_outgoing_connection_is_refused_in_one_line(port, tmp_path, name):
    number = Plan(port=int(port)).ports[name]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", number))
        client.connect(server.getsockname())
        done = CliRunner().invoke(app, ["up", "--port", port, "--logs", str(tmp_path)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    says = f"error: --port: {name} cannot listen on 127.0.0.1:{number} (Address already in use); choose another --port"
    assert done.stderr.startswith(says)


def test_host_of_another_machine_is_refused_in_one_line(port, tmp_path):
    done = CliRunner().invoke(app, ["up", "--port", port, "--logs", str(tmp_path), "--host", "192.0.2.1"])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --port: gateway cannot listen on 192.0.2.1:{port} (")
    assert "check --host" in done.stderr


def test_ports_are_none_of_outgoing_connections_by_default():
    assert max(Plan(port=signature(up).parameters["port"].default, decoders=8).ports.values()) < 32768


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
def test_decoders_with_vllm_run_in_an_environment_of_their_own(settings, stand_ins, tmp_path, vllm_environment, named):
    flags = ["--engine", "vllm", "--engine-options", '{"enforce_eager": true}', "--decoders", "2"]
    flags += ["--decoder-python", str(vllm_environment)] if named else []
    with chdir(tmp_path):
        decoder = settings(*flags)["decoder"]
    pythons = {name: {command[0] for command, *_ in starts} for name, starts in stand_ins.started.items()}
    assert pythons["decoder"] == {str(vllm_environment)} and len(stand_ins.started["decoder"]) == 2
    assert pythons["encoder"] == pythons["gateway"] == {sys.executable}
    assert (decoder.engine, decoder.engine_options) == ("vllm", {"enforce_eager": True})


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


def test_http_port_of_another_service_is_refused(tmp_path):
    flags = ["--port", "20050", "--http-port", "20051", "--logs", str(tmp_path)]
    done = CliRunner().invoke(app, ["up", *flags])
    assert done.exit_code == 1 and "error: --http-port: another service uses 20051; choose one outside" in done.stderr


def test_logs_folder_that_is_a_file_is_refused(frames):
    done = CliRunner().invoke(app, ["up", "--logs", str(frames / "f1.PNG")])
    assert done.exit_code == 1 and "error: --logs: cannot write to" in done.stderr
