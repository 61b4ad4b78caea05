"""mTLS between a gateway and its replicas: real servers with the credentials of ours, and the gateway's pools."""

import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from structlog.testing import capture_logs

from fsr.common.network.certificates import CertificateFiles, Pems, channel_credentials, server_credentials
from fsr.common.network.tls_options import SERVER_TLS
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.routing.pools import Pools
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2
from helpers.certificates import Authority, gateway_options

ROLES = ("encoder", "decoder")
MODEL = types_pb2.ModelDescription(model="m", fingerprint="f")
both_roles = pytest.mark.parametrize("role", ROLES)


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    async def DescribeEncoder(self, request, context):
        return encoder_pb2.DescribeEncoderResponse(model=MODEL, methods=["fsr"])


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Its answer of two tokens is complete when `goes_on` is set."""

    def __init__(self):
        self.goes_on = asyncio.Event()

    async def DescribeDecoder(self, request, context):
        return decoder_pb2.DescribeDecoderResponse(model=MODEL)

    async def Decode(self, request, context):
        yield decoder_pb2.DecodeResponse(token_ids=[1])
        await self.goes_on.wait()
        yield decoder_pb2.DecodeResponse(token_ids=[2], finish_reason=decoder_pb2.FINISH_REASON_STOP)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def serve():
    servers = []

    async def start(credentials, decoder=None):
        """The port of a server of both roles."""
        server = grpc.aio.server()
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(Encoder(), server)
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(decoder or Decoder(), server)
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        await health.set("fsr.v1.DecoderService", health_pb2.HealthCheckResponse.SERVING)
        add = server.add_insecure_port if credentials is None else server.add_secure_port
        port = add("127.0.0.1:0", *([] if credentials is None else [credentials]))
        await server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        await server.stop(None)


@pytest.fixture
async def gateway():
    all_pools = []

    def make(role, target, folder=None, **options):
        """The pools of a gateway with the certificate in a folder, plain without one."""
        addresses = {"encoders": [], "decoders": []} | {f"{role}s": [target]}
        tls = gateway_options(folder) if folder else {}
        patience = {"probe_timeout_seconds": 60}  # on a busy machine a handshake takes a while
        all_pools.append(Pools(GatewaySettings(**addresses, **tls, **patience, **options), Metrics()))
        return all_pools[-1]

    yield make
    for pools in all_pools:
        await pools.close()


def ours(folder):
    """The credentials of our servers, from the files in a folder."""
    cert, key, ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
    return server_credentials(CertificateFiles(cert=cert, key=key, ca=ca, side="server", options=SERVER_TLS))


def pems(folder):
    return Pems(*((folder / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt")))


async def reached(pools, role):
    """Whether the pool's replicas answer, and the reasons that the log gives where they do not."""
    with capture_logs() as logs:
        await pools.refresh()
    reasons = [line["reason"] for line in logs if line["event"] == "replica not reached"]
    return [replica.model is not None for replica in pools.all(role)], reasons


@both_roles
@pytest.mark.parametrize("target", ["127.0.0.1", "dns:///localhost"])
async def test_replica_when_all_certificates_are_right_is_reached(serve, gateway, authority, role, target):
    """By default its certificate has the host of the gateway's option, also where DNS gives another address."""
    name = target.removeprefix("dns:///")
    port = await serve(ours(authority.issue("replica", name)))
    pools = gateway(role, f"{target}:{port}", authority.issue("gateway", "gateway"))
    assert any((await reached(pools, role))[0])


@both_roles
async def test_replica_when_its_certificate_has_another_name_needs_the_option(serve, gateway, authority, role):
    port, mine = await serve(ours(authority.issue("replica", "replicas.test"))), authority.issue("gateway", "gateway")
    up, (reason,) = await reached(gateway(role, f"127.0.0.1:{port}", mine), role)
    assert up == [False] and "Hostname Verification" in reason
    named = gateway(role, f"127.0.0.1:{port}", mine, **{f"{role}_tls_name": "replicas.test"})
    assert await reached(named, role) == ([True], [])


@both_roles
@pytest.mark.parametrize("fault", ["another authority", "no TLS"])
async def test_gateway_when_its_certificate_is_wrong_is_refused(serve, gateway, authority, stranger, role, fault):
    address = f"127.0.0.1:{await serve(ours(authority.issue('replica', '127.0.0.1')))}"
    other = stranger.issue("gateway", "gateway", trusts=authority)
    up, (reason,) = await reached(gateway(role, address, None if fault == "no TLS" else other), role)
    assert up == [False] and "failed to connect" in reason


@pytest.mark.parametrize("fault", ["missing", "expired"])
async def test_caller_when_its_certificate_is_missing_or_has_expired_is_refused(serve, authority, fault):
    """It may have expired while the gateway runs; one that starts with it ends."""
    address = f"127.0.0.1:{await serve(ours(authority.issue('replica', '127.0.0.1')))}"
    shown = pems(authority.issue("gateway", "gateway", expired=fault == "expired"))
    credentials = grpc.ssl_channel_credentials(shown.ca) if fault == "missing" else channel_credentials(shown)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=60)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


@both_roles
@pytest.mark.parametrize("fault", ["expired", "another authority", "no TLS"])
async def test_replica_when_its_certificate_is_wrong_is_not_asked(serve, gateway, authority, stranger, role, fault):
    """It may have expired while the replica runs; one that starts with it ends."""
    issuer = stranger if fault == "another authority" else authority
    shown = pems(issuer.issue("replica", "127.0.0.1", expired=fault == "expired", trusts=authority))
    credentials = grpc.ssl_server_credentials([(shown.key, shown.certificate)], shown.ca, True)
    port = await serve(None if fault == "no TLS" else credentials)
    up, (reason,) = await reached(gateway(role, f"127.0.0.1:{port}", authority.issue("gateway", "gateway")), role)
    assert up == [False]
    expected = {"expired": "has expired", "another authority": "unable to get local issuer", "no TLS": "WRONG_VERSION"}
    assert expected[fault] in reason


@both_roles
async def test_replica_when_the_way_to_it_is_slow_is_reached(serve, gateway, authority, role):
    """What the gateway sends first comes after 1.5 s, as over a long way or to a busy machine."""
    port = await serve(ours(authority.issue("replica", "127.0.0.1")))

    async def relay(reader, writer):
        await asyncio.sleep(1.5)
        to, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, back), pipe(to, writer))

    async def pipe(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as relaying:
        address = f"127.0.0.1:{relaying.sockets[0].getsockname()[1]}"
        pools = gateway(role, address, authority.issue("gateway", "gateway"))
        assert await reached(pools, role) == ([True], [])
        await pools.close()


async def test_certificates_when_they_are_renewed_are_used_and_no_answer_is_cut(serve, gateway, authority, stranger):
    """Both sides get certificates of another authority, and trust that one alone."""
    decoder, replica_files = Decoder(), authority.issue("replica", "127.0.0.1")
    port = await serve(ours(replica_files), decoder)
    pools = gateway("decoder", f"127.0.0.1:{port}", authority.issue("gateway", "gateway"))
    assert await reached(pools, "decoder") == ([True], [])
    (before,) = pools.all("decoder")
    with before.calling():
        answer = before.decoder.Decode(decoder_pb2.DecodeRequest())
        assert (await answer.read()).token_ids == [1]
        for name, host in (("replica", "127.0.0.1"), ("gateway", "gateway")):
            stranger.issue(name, host)
        assert await reached(pools, "decoder") == ([True], [])
        (after,) = pools.all("decoder")
        assert after is not before and after.breaker is before.breaker
        decoder.goes_on.set()
        tokens = [message.token_ids[0] async for message in after.decoder.Decode(decoder_pb2.DecodeRequest())]
        assert tokens == [1, 2]
        await pools.refresh()
        assert (await answer.read()).token_ids == [2]
    await pools.refresh()
    assert before.channel.get_state() == grpc.ChannelConnectivity.SHUTDOWN


async def test_gateway_when_its_new_files_cannot_be_used_goes_on_with_the_old_ones(serve, gateway, authority):
    port, mine = await serve(ours(authority.issue("replica", "127.0.0.1"))), authority.issue("gateway", "gateway")
    pools = gateway("decoder", f"127.0.0.1:{port}", mine)
    await pools.refresh()
    (before,) = pools.all("decoder")
    (mine / "tls.key").write_text("half a ke")
    assert await reached(pools, "decoder") == ([True], [])
    assert pools.all("decoder") == [before]
