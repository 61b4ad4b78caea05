"""The start of an encoder: one that cannot start says why in one line, before Ray starts."""

import socket
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from fsr.encoder.__main__ import check_checkpoint, check_ports
from fsr.encoder.settings import EncoderSettings
from helpers import checkpoints
from helpers.waiting import until


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    checkpoints.llava(folder)
    return folder


def test_start_when_the_checkpoint_is_wrong_then_one_line_names_it(llava):
    command = [sys.executable, "-m", "fsr.encoder", "--model", str(llava)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --clip: no CLIP text side is known for")
    assert "Traceback" not in done.stderr


def test_family_option_when_it_is_wrong_is_named(llava):
    settings = EncoderSettings(model=str(llava), family_options={"layout": "tiles"})
    with pytest.raises(SystemExit, match=r"^error: --family-options: llava has no option 'layout'"):
        check_checkpoint(settings)


@pytest.mark.cluster
def test_a_ray_node_when_it_is_late_is_started_again(tmp_path, free_ports):
    """The first node is frozen while it starts; two minutes later it is given up."""
    port, log = free_ports(2), tmp_path / "log"
    command = [sys.executable, "-m", "fsr.encoder", "--port", str(port), "--metrics-port", str(port + 1)]

    def raylets():
        return [process for process in encoder.children(recursive=True) if process.name() == "raylet"]

    with log.open("wb") as file:
        encoder = psutil.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        until(raylets)
        (frozen,) = raylets()
        frozen.suspend()
        until(lambda: "Ray did not start, trying again" in log.read_text())
        until(lambda: '"event": "serving"' in log.read_text())
        assert not frozen.is_running()
        encoder.terminate()
        assert encoder.wait(120) == 0
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in [*encoder.children(recursive=True), encoder]:
                process.kill()


def test_start_when_a_port_is_taken_then_one_line_names_it(free_ports):
    """An outgoing connection holds it. Ray would try to open it for good, and say nothing."""
    port = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", port))
        client.connect(server.getsockname())
        for option, settings in (
            ("--port", EncoderSettings(port=port)),
            ("--metrics-port", EncoderSettings(port=port + 1, metrics_port=port)),
        ):
            with pytest.raises(SystemExit, match=rf"^error: {option}: cannot listen on 127.0.0.1:{port} \(.*in use"):
                check_ports(settings)


@pytest.mark.cluster
@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_encoder_when_its_ray_is_killed_ends(tmp_path, free_ports, part):
    port, log = free_ports(2), tmp_path / "log"
    command = [sys.executable, "-m", "fsr.encoder", "--port", str(port), "--metrics-port", str(port + 1)]
    with log.open("wb") as file:
        encoder = psutil.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        until(lambda: '"event": "serving"' in log.read_text(), 400)
        for process in encoder.children(recursive=True):
            if process.name() == part:
                process.kill()
        assert encoder.wait(60) == 1
        assert "error: Ray has ended: Ray's " in log.read_text().splitlines()[-1]
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in [*encoder.children(recursive=True), encoder]:
                process.kill()
