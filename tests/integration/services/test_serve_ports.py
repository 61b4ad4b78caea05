"""Where Ray Serve's own functions open their ports, and with which certificate."""

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest

with warnings.catch_warnings():  # pydantic 2 warns of how Ray 2.60 declares its schemas
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.serve._private import default_impl, grpc_util, replica
    from ray.serve.config import gRPCOptions

from ray.util import get_node_ip_address

from fsr.common.health import check
from fsr.common.network.certificates import CertificateError, Pems, channel_credentials
from fsr.encoder.serving import serve_ports
from fsr.encoder.serving.serve_ports import (
    CALLBACK,
    LISTEN_ON,
    check_tls,
    listen_as_told,
    share_no_port,
    tls_environment,
    version_problem,
)
from fsr.encoder.settings import EncoderSettings
from helpers.certificates import Authority, options


@pytest.fixture(autouse=True)
def functions_of_serve(monkeypatch):
    """What is replaced comes back after the test."""
    for module, name in (
        (default_impl, "add_grpc_address"),
        (replica, "add_port_to_grpc_server"),
        (grpc_util, "gRPCGenericServer"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))


async def test_replicas_of_two_encoders_share_no_port(free_ports):
    """Serve starts them as here. Each would get a part of the other's requests."""
    share_no_port()
    options = gRPCOptions(port=free_ports())

    async def start():
        return await grpc_util.start_grpc_server(
            lambda **_: None, options, event_loop=asyncio.get_running_loop(), enable_so_reuseport=False
        )

    task, server = await start()
    try:
        with pytest.raises(RuntimeError, match=r"[Ff]ailed to bind"):
            await start()
    finally:
        await server.stop(None)
        await task


def test_ports_of_serve_are_bound_where_they_are_told(monkeypatch, free_ports):
    """Serve itself gives its gRPC servers addresses of every interface."""
    port = free_ports()
    monkeypatch.setenv(LISTEN_ON, "127.0.0.1")
    listen_as_told()
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    default_impl.add_grpc_address(server, f"[::]:{port}")
    internal = replica.add_port_to_grpc_server(server, "[::]:0")
    server.start()
    try:
        listening = {c.laddr.port: c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"}
    finally:
        server.stop(None).wait()
    assert listening[port].endswith("127.0.0.1")
    assert listening[internal].endswith(get_node_ip_address())


def test_ports_of_a_ray_of_others_stay_as_serve_binds_them(monkeypatch):
    before = default_impl.add_grpc_address, replica.add_port_to_grpc_server
    monkeypatch.delenv(LISTEN_ON, raising=False)
    assert listen_as_told() == []
    assert (default_impl.add_grpc_address, replica.add_port_to_grpc_server) == before


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Gives Ray's processes the encoder's certificate, and returns its folder and the encoder's settings."""
    folder = Authority(tmp_path).issue("encoder", "127.0.0.1")
    settings = EncoderSettings(**options(folder))
    for name, value in (CALLBACK | tls_environment(settings)).items():
        monkeypatch.setenv(name, value)
    return folder, settings


@pytest.mark.parametrize("host", ["127.0.0.1", None])
def test_ingress_when_the_encoder_has_a_certificate_opens_with_it(monkeypatch, free_ports, told, host):
    """On a local Ray, and on one that others started, whose ports are not bound elsewhere."""
    folder, port = told[0], free_ports()
    monkeypatch.delenv(LISTEN_ON, raising=False)
    if host:
        monkeypatch.setenv(LISTEN_ON, host)
    listen_as_told()
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    default_impl.add_grpc_address(server, f"127.0.0.1:{port}")
    server.start()
    try:
        pems = Pems(*((folder / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt")))
        unknown = grpc.ssl_channel_credentials(pems.ca)
        answers = [
            check(f"127.0.0.1:{port}", credentials=c, timeout=60) for c in (channel_credentials(pems), unknown, None)
        ]
    finally:
        server.stop(None).wait()
    assert ["UNIMPLEMENTED" in answer for answer in answers] == [True, False, False]  # it has no health service
    assert all("UNAVAILABLE" in answer for answer in answers[1:])


def test_ingress_when_the_version_of_ray_is_unknown_is_not_opened(monkeypatch, told):
    monkeypatch.setattr(serve_ports.metadata, "version", lambda name: "2.61.0")
    says = r"^ray: 2\.61\.0 is not supported \(.*\); install 'ray\[serve\]~=2\.60\.0'$"
    with pytest.raises(RuntimeError, match=says):
        listen_as_told()
    with pytest.raises(ValueError, match=says):
        check_tls(told[1])


def test_version_of_ray_that_is_installed_is_known():
    assert version_problem() is None


def test_ingress_when_its_certificate_cannot_be_used_is_not_opened(told):
    (told[0] / "tls.key").write_text("nothing")
    with pytest.raises(CertificateError, match=r"^tls_cert: "):
        listen_as_told()


@pytest.mark.parametrize("missing", ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "FSR_ENCODER_TLS_CLIENT_CA"])
def test_ray_that_would_open_its_ports_without_tls_is_refused(monkeypatch, told, missing):
    check_tls(told[1])
    monkeypatch.delenv(missing)
    with pytest.raises(
        ValueError, match=rf"^tls_cert: needs a Ray whose processes all started with {missing}=\S+; set"
    ):
        check_tls(told[1])
