"""A gateway and a decoder where little is as usual: IPv6, a dead proxy, a HOME nobody can write, a name like `möd`."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
from urllib.parse import quote

import grpc
import pytest

from fsr.client import Client, UnavailableError
from fsr_core.tiny.scenes import scene_png
from helpers.waiting import until

NAME = "möd 模型"
SHELL = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HOME": "/proc/nowhere"}


def has_ipv6():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@pytest.fixture
def shell(monkeypatch):
    """What the shell around services and clients sets; nothing of it names hosts without a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def pair(spawn, long_context, free_ports, tmp_path_factory):
    """A gateway that listens on every interface and a decoder on ::1; the ports of HTTP and of health alone."""
    folder = tmp_path_factory.mktemp("models") / NAME
    shutil.copytree(long_context, folder)
    http_port, health_port = free_ports(), free_ports()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHELL.items():
            patch.setenv(name, value)
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        decoder = spawn("decoder", "--model", str(folder), "--served-name", NAME, host="::1")
        options = ("--encoders", "[::1]:9", "--decoders", f"dns:///{decoder.address}", "--discovery-seconds", "0.3")
        ports = ("--http-port", str(http_port), "--health-port", str(health_port))
        gateway = spawn("gateway", *options, *ports, host="[::]")
    decoder.wait_until_serving()
    with grpc.insecure_channel(f"127.0.0.1:{port_of(gateway.address)}") as channel:
        grpc.channel_ready_future(channel).result(180)
    with Client(f"127.0.0.1:{port_of(gateway.address)}") as client:
        until(lambda: [model.decoders for model in client.models()] == [1])
    return decoder, gateway, http_port, health_port


def port_of(address):
    return address.rpartition(":")[2]


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1", "localhost"])
def test_question_by_grpc_is_answered(pair, shell, host):
    with Client(f"{host}:{port_of(pair[1].address)}", replicas=True) as client:
        answer = client.ask([], "Hello", model=NAME, max_tokens=3, ignore_eos=True)
        assert answer.usage.completion_tokens == 3 and answer.route.decoders == (pair[0].address,)
        with pytest.raises(UnavailableError, match="no replica of möd answers yet"):
            client.ask([], "Hello", model="möd")


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
def test_model_by_http_has_its_name(pair, host):
    connection = http.client.HTTPConnection(host, pair[2], timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", f"/v1/models/{quote(NAME)}")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["id"]) == (200, NAME)


def test_metrics_name_the_model(pair):
    decoder, gateway = pair[:2]
    assert decoder.metric("fsr_decoder_kv_capacity_bytes", model=NAME) > 0
    assert gateway.metric("fsr_replicas_ready", model=NAME, role="decoder") == 1


@pytest.mark.cluster
def test_picture_reaches_an_encoder_on_ipv6(pair, spawn, long_context, free_ports, tmp_path, monkeypatch):
    """Ray and Serve, which have the proxy in their environment too."""
    folder = tmp_path / NAME
    shutil.copytree(long_context, folder)
    own = ("--model", str(folder), "--served-name", NAME, "--metrics-port", str(free_ports()))
    with monkeypatch.context() as patch:  # for the services: the wait for them is no part of the system
        for name, value in SHELL.items():
            patch.setenv(name, value)
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        encoder = spawn("encoder", *own, host="::1")
        gateway = spawn("gateway", "--encoders", encoder.address, "--decoders", pair[0].address)
    gateway.wait_until_serving()  # it does not, before it has an encoder
    with Client(gateway.address) as client:
        answer = client.ask(scene_png(1), "Is there a red star?", budget=16, max_tokens=3, ignore_eos=True)
    assert (answer.usage.visual_tokens_kept, answer.usage.completion_tokens) == (16, 3)


def test_health_is_asked_without_the_proxy(pair, shell):
    decoder, _, _, health_port = pair
    for address, code in ((decoder.address, 0), (f"[::1]:{health_port}", 1), (f"::1:{health_port}", 1)):
        command = [sys.executable, "-m", "fsr.common.health", address]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == code
    assert "in brackets" in done.stderr
