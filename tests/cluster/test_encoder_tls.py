"""mTLS into a real Ray Serve, by both ingresses: the proxy's port, and the replica's own."""

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest

from fsr.common.health import check
from fsr.common.network.certificates import Pems, channel_credentials
from fsr.encoder.serving.serve_ports import CALLBACK, tls_environment
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.routing.pools import Pools
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import encoder_pb2, encoder_pb2_grpc, types_pb2
from fsr_core.tiny.scenes import scene_png
from helpers.certificates import Authority, flags, gateway_options, options
from helpers.waiting import until

pytestmark = pytest.mark.cluster


def pems(folder):
    return Pems(*((folder / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt")))


@contextmanager
def running(command, log, **environment):
    """A process, and all that it starts."""
    with log.open("wb") as file:
        process = psutil.Popen(command, stdout=file, stderr=file, start_new_session=True, env=os.environ | environment)
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for one in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def encoder(authority, folder, free_ports):
    """Its log, the proxy's address, and that of the replica."""
    port, log = free_ports(2), folder / "log"
    command = [sys.executable, "-m", "fsr.encoder", "--port", str(port), "--metrics-port", str(port + 1)]
    command += ["--ingress", "direct", "--direct-port", str(free_ports(20))]
    command += flags(options(authority.issue("encoder", "127.0.0.1")))
    with running(command, log) as process:
        until(lambda: '"event": "serving"' in log.read_text() or process.poll() is not None, 400)
        proxy = f"127.0.0.1:{port}"
        with connection(proxy, channel_credentials(pems(authority.issue("asks", "gateway")))) as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            (replica,) = stub.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=120).addresses
        yield log, proxy, replica


def connection(address, credentials):
    return grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)


def refused(address, credentials):
    """Whether a caller with these credentials gets no connection."""
    with connection(address, credentials) as channel:
        try:
            encoder_pb2_grpc.EncoderServiceStub(channel).DescribeEncoder(
                encoder_pb2.DescribeEncoderRequest(), timeout=60
            )
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAVAILABLE
    return False


def encode(address, credentials, picture):
    request = encoder_pb2.EncodeRequest(
        images=[types_pb2.Image(data=picture)], instruction="Is it red?", budget=types_pb2.Budget(tokens=16)
    )
    with connection(address, credentials) as channel:
        encoded = encoder_pb2_grpc.EncoderServiceStub(channel).Encode(request, timeout=120)
    return len(encoded.images[0].index)


@pytest.fixture(scope="module")
def ingresses(encoder):
    """Both addresses; another one for a replica than for the proxy, or there is no direct ingress."""
    assert encoder[1] != encoder[2]
    return encoder[1:]


def test_encoder_takes_callers_with_the_right_certificate_alone(ingresses, authority, folder):
    stranger = Authority(folder)
    right = channel_credentials(pems(authority.issue("right", "gateway")))
    wrong = {
        "plain": None,
        "missing": grpc.ssl_channel_credentials(pems(folder / "right").ca),
        "expired": channel_credentials(pems(authority.issue("old", "gateway", expired=True))),
        "another authority": channel_credentials(pems(stranger.issue("other", "gateway", trusts=authority))),
        "encoder not trusted": channel_credentials(pems(authority.issue("wary", "gateway", trusts=stranger))),
    }
    for address in ingresses:
        assert encode(address, right, scene_png(1)) == 16
        assert [name for name, credentials in wrong.items() if not refused(address, credentials)] == []
    assert check(ingresses[0], ray_serve=True, timeout=60, credentials=right) is None


async def test_gateway_reaches_the_encoder_by_both_ingresses(ingresses, authority):
    files = gateway_options(authority.issue("gateway", "gateway"))
    pools = Pools(GatewaySettings(encoders=[ingresses[0]], decoders=[], probe_timeout_seconds=60, **files), Metrics())
    for _ in range(2):
        await pools.refresh()
    assert {replica.address: replica.model is not None for replica in pools.all("encoder")} == dict.fromkeys(
        ingresses, True
    )
    await pools.close()


def test_encoder_when_its_certificate_is_renewed_uses_the_new_one(encoder, ingresses, authority, folder):
    """First by an expired one, which changes nothing, then by one of another authority."""
    old, stranger = channel_credentials(pems(authority.issue("right", "gateway"))), Authority(folder)
    authority.issue("encoder", "127.0.0.1", expired=True)
    for address in ingresses:
        assert encode(address, old, scene_png(2)) == 16
    until(lambda: "certificate not read again; the old one stays" in encoder[0].read_text())
    new = channel_credentials(pems(stranger.issue("renewed", "gateway")))
    stranger.issue("encoder", "127.0.0.1")
    for address in ingresses:
        assert encode(address, new, scene_png(3)) == 16
        assert refused(address, old)


@pytest.mark.parametrize("told", [True, False])
def test_ray_that_others_started_opens_with_the_certificate_or_is_refused(authority, folder, free_ports, told):
    """As on Kubernetes: its processes know the certificate from their environment alone."""
    files, ports = authority.issue("joined", "127.0.0.1"), free_ports(3)
    settings = EncoderSettings(**options(files))
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    head = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port", str(ports)]
    head += ["--ray-client-server-port", str(ports + 2), "--min-worker-port", "0", "--max-worker-port", "0"]
    head += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false", "--num-cpus", "2"]
    encoder = [sys.executable, "-m", "fsr.encoder", "--ray-address", f"127.0.0.1:{ports}", "--port", str(ports + 1)]
    log, address = folder / "joined.log", f"127.0.0.1:{ports + 1}"
    tls = CALLBACK | tls_environment(settings) if told else {}
    with running(head, folder / "head.log", **environment, **tls):
        until(lambda: "Ray runtime started" in (folder / "head.log").read_text(), 90)
        with running([*encoder, *flags(options(files))], log, **environment) as process:
            until(lambda: '"event": "serving"' in log.read_text() or process.poll() is not None, 400)
            if not told:
                assert process.poll() == 1 and "Traceback" not in log.read_text()
                assert "error: tls_cert: needs a Ray whose processes all started with RAY_SERVE_HTTP" in log.read_text()
                return
            credentials = channel_credentials(pems(files))
            assert check(address, ray_serve=True, timeout=60, credentials=credentials) is None
            assert refused(address, None)
