"""`fsr up` and the commands beside it, on the whole system."""

import contextlib
import json
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import trustme

from fsr.cli.options import SCENE
from fsr.cli.stack.plan import Plan
from fsr.client import Client, Tls
from fsr.common.health import check
from fsr.common.network.ports import is_loopback
from fsr_core.tiny.scenes import scene_png
from helpers.certificates import Authority
from helpers.processes import process_of
from helpers.waiting import until

QUESTION = "Is there a red star?"


def fsr(*arguments):
    command = [sys.executable, "-m", "fsr.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "scene.png").write_bytes(scene_png(SCENE))
    return tmp_path / "scene.png"


def commands_of(processes):
    """The command line of each that lives, by its id."""
    commands = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            commands[process.pid] = " ".join(process.cmdline())
    return commands


def open_to_others(processes):
    """The TCP ports of these processes that other machines reach, each with the command of its process."""
    commands = commands_of(processes)
    return [
        (commands[connection.pid][:80], connection.laddr)
        for connection in psutil.net_connections("tcp")
        if connection.pid in commands
        and connection.status == psutil.CONN_LISTEN
        and not is_loopback(connection.laddr.ip)
    ]


def test_no_port_of_the_system_is_open_to_other_machines(system):
    """Neither those of the services, nor Ray's, nor those of Serve's proxy and replicas."""
    names = {"gateway": "gateway", "encoder": "encoder", "decoder": "decoder-0"}
    services = [process_of(service, system[name].rpartition(":")[2]) for service, name in names.items()]
    family = [*services, *(child for process in services for child in process.children(recursive=True))]
    assert len(family) > 6  # Ray's among them
    assert open_to_others(family) == []


def test_models_lists_what_is_served(system):
    (row,) = json.loads(fsr("models", "--gateway", system["gateway"], "--json").stdout)
    assert (row["model"], row["encoders"], row["decoders"], row["budget"]) == ("fsr-tiny", 1, 2, "auto")
    assert row["method"] in row["methods"]
    table = fsr("models", "--gateway", system["gateway"]).stdout
    assert "fsr-tiny" in table and "methods of fsr-tiny: " in table


def test_ask_takes_every_choice_of_the_sdk(system, picture):
    """Sampling is repeatable by its seed, an answer ends before its stop text, and a method has its options."""
    ask = ("ask", picture, QUESTION, "--gateway", system["gateway"], "--budget", "16", "--json")
    plain = json.loads(fsr(*ask).stdout)
    assert (plain["answer"], plain["finish_reason"], plain["model"]) == ("yes", "stop", "fsr-tiny")
    assert plain["method"] == plain["usage"]["method"]
    assert json.loads(fsr(*ask, "--stop", "never", "--stop", "es").stdout)["answer"] == "y"
    assert json.loads(fsr(*ask, "--max-tokens", "1").stdout)["finish_reason"] == "length"
    sampled = ("--temperature", "5", "--top-p", "0.9", "--top-k", "50", "--seed", "7", "--max-tokens", "16")
    assert fsr(*ask, *sampled).stdout.partition('"usage"')[0] == fsr(*ask, *sampled).stdout.partition('"usage"')[0]
    chosen = json.loads(fsr(*ask, "--method", "fsr", "--option", "rho=0.7").stdout)
    assert chosen["method"] == "fsr" and chosen["usage"]["method_chosen_by"] == "request"
    told = json.loads(fsr(*ask, "--system", "Answer in one word.").stdout)
    assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    wrong = fsr(*ask, "--method", "fsr", "--option", "roh=0.7")
    assert wrong.returncode == 1 and "roh" in wrong.stderr and wrong.stderr.count("\n") == 1


@pytest.mark.cluster
def test_up_with_keys_and_certificates_outlives_its_services(free_ports, tmp_path, picture):
    """One system for many things, because a start takes long: what is asked for, who can reach it, what dies. Its
    services have certificates for each other too."""
    authority, port, logs = trustme.CA(), free_ports(30), tmp_path / "logs"
    server, client, ca = tmp_path / "server.pem", tmp_path / "client.pem", tmp_path / "ca.pem"
    for name, path in (("localhost", server), ("me", client)):
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
    authority.cert_pem.write_to_path(ca)
    command = [sys.executable, "-m", "fsr.cli.main", "up", "--port", str(port), "--logs", str(logs), "--json"]
    command += ["--served-name", "mine", "--encoders", "2", "--decoders", "2", "--kv-memory", "64MiB"]
    command += ["--api-keys", "open-sesame", "--tls-cert", str(server), "--tls-key", str(server)]
    inner = Authority(tmp_path).issue("inner", "127.0.0.1")
    command += [
        "--inner-tls",
        str(inner),
        "--tls-client-ca",
        str(ca),
        "--encoder-option",
        "cache_mb=8",
        "--gateway-option",
        "max_requests=9",
    ]
    up = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(up.stderr.readline, "")))
    reader.start()
    try:
        gateway = json.loads(up.stdout.readline())["gateway"]
        assert open_to_others(up.children(recursive=True)) == []
        tls = Tls(ca=ca, cert=client, key=client, server_name="localhost")

        def answers():
            with Client(gateway, tls=tls, api_key="open-sesame") as caller:
                (model,) = caller.models(timeout=60)
                assert (model.model, model.decoders) == ("mine", 2)
                return caller.ask(picture, QUESTION, budget=16, timeout=120).text.strip()

        assert answers() == "yes"
        assert any("callers need a key" in line for line in lines)
        for name in ("decoder-0", "decoder-1", "encoder"):
            address = f"127.0.0.1:{Plan(port=port, decoders=2).ports[name]}"
            assert "UNAVAILABLE" in check(address, ray_serve=name == "encoder", timeout=60)  # without a certificate
        assert "open-sesame" not in str(commands_of([up, *up.children(recursive=True)]))
        processes = {
            "decoder-1": process_of("decoder", str(port + 12)),
            "gateway": process_of("gateway", str(port)),
            "encoder": next(child for child in up.children(recursive=True) if child.name() == "raylet"),
        }
        for number, (name, victim) in enumerate(processes.items(), 1):
            victim.kill()
            until(lambda number=number: sum("ready again" in line for line in lines) == number, 600)
            assert any(line.startswith(f"{name} ") and "the end of its log" in line for line in lines), lines
            assert answers() == "yes"
        assert any("error: Ray has ended: Ray's raylet does not answer" in line for line in lines)
        family = up.children(recursive=True)
        up.send_signal(signal.SIGTERM)
        assert up.wait(120) == 0
        _, left = psutil.wait_procs(family, timeout=120)
        assert left == []
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in [*up.children(recursive=True), up]:
                child.kill()
        reader.join()
        up.stdout.close()
        up.stderr.close()
