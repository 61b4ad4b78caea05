"""The messages of real calls: read, refused, waited for, and let go of."""

import asyncio
import gc
import weakref

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from fsr.common.errors import InvalidRequest, stream_errors, unary_errors
from fsr.common.wire.incoming import IncomingMessages
from fsr.common.wire.transport import server_options
from fsr.v1 import decoder_pb2, decoder_pb2_grpc

Code = grpc.StatusCode
SERVICE = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"]
DECODE, DESCRIBE = f"/{SERVICE.full_name}/Decode", f"/{SERVICE.full_name}/DescribeDecoder"


class Local:
    """Something in the frame of a method; a protobuf message cannot be watched itself."""


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Echoes a request's id, in three messages; refuses the id "refused"."""

    def __init__(self):
        self.watched = []

    @unary_errors
    async def DescribeDecoder(self, request, context):
        self._refuse()
        return decoder_pb2.DescribeDecoderResponse()

    @stream_errors
    async def Decode(self, request, context):
        if request.request_id == "refused":
            self._refuse()
        for piece in (request.request_id, "", "!"):
            yield decoder_pb2.DecodeResponse(text=piece)

    def _refuse(self):
        local = Local()
        self.watched.append(weakref.ref(local))
        raise InvalidRequest("request_id: is odd; send another")


class Server:
    def __init__(self, address, decoder, counted):
        self.address, self.decoder, self.counted = address, decoder, counted

    async def error(self, path, data, **options):
        """Code and details of a call with these bytes that must fail, and bring no message."""
        async with grpc.aio.insecure_channel(self.address, **options) as channel:
            call = channel.unary_stream(path)(data, timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pytest.fail("a message came before the status")
        return caught.value.code(), caught.value.details()


@pytest.fixture
async def server():
    decoder, counted = Decoder(), []
    incoming = IncomingMessages(SERVICE, lambda *refused: counted.append(refused), seconds=0.3, max_fields=100)
    started = grpc.aio.server(interceptors=[incoming], options=server_options())
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(decoder, started)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, started)
    reflection.enable_server_reflection([SERVICE.full_name], started)
    address = f"127.0.0.1:{started.add_insecure_port('127.0.0.1:0')}"
    await started.start()
    yield Server(address, decoder, counted)
    await started.stop(None)


async def test_calls_when_their_messages_are_good_are_answered(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        answer = [m.text async for m in stub.Decode(decoder_pb2.DecodeRequest(request_id="a"))]
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        watched = await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read()
        listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")] * 2)
        )
        services = [[one.name for one in m.list_services_response.service] async for m in listed]
    assert answer == ["a", "", "!"]
    assert health.status == watched.status == health_pb2.HealthCheckResponse.SERVING
    assert services == [[SERVICE.full_name]] * 2
    assert not server.counted


@pytest.mark.parametrize("path", [DECODE, DESCRIBE])
@pytest.mark.parametrize("data", [b"\xff" * 9, b"\x12\0" * 200], ids=["unreadable", "fields"])
async def test_message_when_it_cannot_be_read_is_refused_counted_and_logged(server, path, data):
    with capture_logs() as lines:
        code, details = await server.error(path, data)
    assert code == Code.INVALID_ARGUMENT and "; " in details and "Unexpected" not in details
    assert server.counted == [(path.rpartition("/")[2], "INVALID_ARGUMENT")]
    assert [(line["event"], line["reason"]) for line in lines] == [("refused", details)]


@pytest.mark.parametrize("path", [DECODE, DESCRIBE, "/grpc.health.v1.Health/Check"])
async def test_message_when_it_does_not_arrive_is_not_waited_for(server, path, monkeypatch):
    monkeypatch.setattr("fsr.common.wire.incoming._OPEN_SECONDS", 0.3)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.stream_stream(path)()
        async with asyncio.timeout(30):
            assert await call.code() == Code.DEADLINE_EXCEEDED
        assert (await call.details()).startswith("request: did not arrive within 0.3 s")


@pytest.mark.parametrize("path", [DECODE, DESCRIBE])
async def test_call_when_it_has_no_message_says_so(server, path):
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.stream_stream(path)()
        await call.done_writing()
        assert (await call.code(), await call.details()) == (
            Code.INVALID_ARGUMENT,
            "request: has no message; send one",
        )


@pytest.mark.parametrize("rpc", ["Check", "Watch"])
async def test_health_when_the_name_of_the_service_is_long_is_refused(server, rpc):
    request = health_pb2.HealthCheckRequest(service="x" * 5000)
    code, details = await server.error(f"/grpc.health.v1.Health/{rpc}", request.SerializeToString())
    assert code == Code.INVALID_ARGUMENT and details.startswith("request: 5003 bytes are more than 4096")


async def test_message_when_it_is_compressed_is_unimplemented(server):
    code, details = await server.error(DECODE, bytes(10_000), compression=grpc.Compression.Gzip)
    assert code == Code.UNIMPLEMENTED and "gzip" in details


@pytest.mark.parametrize("path", [DECODE, DESCRIBE])
async def test_request_when_it_was_refused_is_let_go_of_without_the_garbage_collector(server, path):
    data = decoder_pb2.DecodeRequest(request_id="refused").SerializeToString() if path == DECODE else b""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert await server.error(path, data) == (Code.INVALID_ARGUMENT, "request_id: is odd; send another")
        async with asyncio.timeout(30):  # the task of a call ends a little after the call
            while any(local() is not None for local in server.decoder.watched):
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
    assert len(server.decoder.watched) == 3
