"""`fsr doctor` on this machine: it asks the real torch, and reads a model as an encoder does."""

import json
import socket
import sys

import pytest
from typer.testing import CliRunner

from fsr.cli.doctor import model
from fsr.cli.main import app


@pytest.fixture
def port(free_ports):
    return free_ports(30)


def test_doctor_when_all_is_well_says_so(port):
    """A machine may be low in memory, and have one CPU: these are warnings."""
    done = CliRunner().invoke(app, ["doctor", "--port", str(port), "--json"])
    found = {one["subject"]: one for one in json.loads(done.stdout)}
    assert done.exit_code == 0, done.stdout
    assert not [one for one in found.values() if one["level"] == "error"]
    assert {"Python", "ray", "torch", "devices", "ports", "CPUs", "memory", "/dev/shm", "proxies", "model"} <= set(
        found
    )
    assert found["Python"]["text"].endswith(sys.executable)


def test_doctor_when_something_is_wrong_says_what_to_do(port):
    with socket.create_server(("127.0.0.1", port + 1)):
        done = CliRunner().invoke(
            app, ["doctor", "--port", str(port), "--model", "/no/such/folder", "--device", "cuda:7"]
        )
    assert done.exit_code == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("error ")}
    assert set(lines) == {"ports", "model", "devices"}
    assert lines["ports"].endswith("(Address already in use); choose another --port")
    assert "--model: /no/such/folder is no folder, and no hub id" in lines["model"]
    assert "--device cuda:7 cannot be used" in lines["devices"]
    assert done.stdout.splitlines()[-1].startswith("errors: 3, warnings: ")


def test_model_in_a_folder_is_read_as_the_encoder_does(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    found = model.model(str(tmp_path), None)
    assert found.level == "error" and "gpt2" in found.text and found.text.startswith("--model")
