"""What becomes of replicas that are unwell in ways of which their health check says nothing."""

import asyncio
from contextlib import aclosing

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest

from fsr.common.errors import NotReady
from fsr.common.telemetry import add_health_and_reflection
from fsr.gateway.canary import Canary
from fsr.gateway.deadline import Deadline
from fsr.gateway.decoder_hop import Decoding
from fsr.gateway.encoder_hop import Encoding
from fsr.gateway.metrics import Metrics
from fsr.gateway.pipeline import Requests
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Retrying
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.settings import GatewaySettings
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, gateway_pb2, types_pb2

Code = grpc.StatusCode
# A replica that hangs is waited for so long, which is enough for the one that is well on a busy machine.
PATIENCE = {"first_token_seconds": 1.0, "stall_seconds": 1.0}
MODEL = types_pb2.ModelDescription(model="m", fingerprint="f")


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Well by its health check; with every request goes wrong what `wrong` says, after `first` messages."""

    def __init__(self, wrong=None, first=0, fingerprint="f"):
        self.wrong, self.first, self.fingerprint, self.asked = wrong, first, fingerprint, 0

    async def DescribeDecoder(self, request, context):
        model = types_pb2.ModelDescription(model="m", fingerprint=self.fingerprint)
        return decoder_pb2.DescribeDecoderResponse(model=model)

    async def Decode(self, request, context):
        self.asked += 1
        if self.wrong is None:
            yield decoder_pb2.DecodeResponse(finish_reason=decoder_pb2.FINISH_REASON_STOP)
            return
        for token in range(self.first):
            yield decoder_pb2.DecodeResponse(token_ids=[token])
        if self.wrong == "hangs":
            await asyncio.sleep(60)
        await context.abort(self.wrong, "out of order")


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Answers questions about itself after `patience` seconds, and encodes at once."""

    patience = 0.0

    async def DescribeEncoder(self, request, context):
        await asyncio.sleep(self.patience)
        return encoder_pb2.DescribeEncoderResponse(model=MODEL)

    async def Encode(self, request, context):
        return encoder_pb2.EncodeResponse(fingerprint="f")


@pytest.fixture
async def serve():
    servers = []

    async def start(servicer):
        """Its address."""
        server = grpc.aio.server()
        if isinstance(servicer, Decoder):
            decoder_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)
        else:
            encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server)
        health = add_health_and_reflection(server, [])
        await health.set("fsr.v1.DecoderService", health_pb2.HealthCheckResponse.SERVING)
        servers.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


@pytest.fixture
async def gateway():
    made = []

    def make(**options):
        settings = GatewaySettings(**options)
        made.append(Pools(settings, Metrics()))
        return made[-1], Retrying(settings, Metrics(), RetryBudget(1.0, 100))

    yield make
    for pools in made:
        await pools.close()


@pytest.mark.parametrize(
    ("wrong", "first"),
    [("hangs", 0), ("hangs", 2), (Code.UNAVAILABLE, 0), (Code.UNAVAILABLE, 2), (Code.INTERNAL, 0), (Code.INTERNAL, 2)],
)
async def test_a_replica_that_fails_its_requests_is_ejected_however_well_it_says_it_is(serve, gateway, wrong, first):
    bad, good = Decoder(wrong, first), Decoder()
    addresses = [await serve(bad), await serve(good)]
    out = {"eject_failures": 3, "eject_seconds": 60}
    pools, shared = gateway(encoders=[], decoders=addresses, **(PATIENCE if wrong == "hangs" else {}), **out)
    decoding = Decoding(pools, shared)
    for _ in range(40):
        await pools.look()  # all are well
        request, trail = decoder_pb2.DecodeRequest(), Trail("r")
        async with aclosing(decoding.answer("m", request, Deadline(20), trail)) as answer:
            told = [message async for _, message in answer]
        assert told[-1].finish_reason and trail.decoders[-1] == addresses[1]
    assert (bad.asked, good.asked) == (3, 40)


async def test_text_goes_to_any_checkpoint_but_the_one_that_began_an_answer_finishes_it(serve, gateway):
    old, same, new = Decoder(Code.UNAVAILABLE, 2, "old"), Decoder(None, 0, "old"), Decoder(None, 0, "new")
    addresses = [await serve(servicer) for servicer in (old, same, new)]
    pools, shared = gateway(encoders=[], decoders=addresses, eject_failures=1000)
    decoding = Decoding(pools, shared)
    routes = set()
    for _ in range(60):
        await pools.look()
        request, trail = decoder_pb2.DecodeRequest(), Trail("r")
        async with aclosing(decoding.answer("m", request, Deadline(20), trail)) as answer:
            tokens = [token async for _, message in answer for token in message.token_ids]
        began_by_old = trail.decoders[0] == addresses[0]
        assert tokens == ([0, 1] if began_by_old else []) and len(trail.decoders) == 1 + began_by_old
        routes.add(tuple(addresses.index(address) for address in trail.decoders))
    assert routes == {(0, 1), (1,), (2,)}


async def test_text_stays_with_its_checkpoint_though_that_decoder_drains_before_its_first_word(serve, gateway):
    class Draining(Decoder):
        async def Decode(self, request, context):
            pools._all["decoder", addresses[0]].down("not serving")  # as a look at it does
            yield decoder_pb2.DecodeResponse(token_ids=[0])
            await context.abort(Code.UNAVAILABLE, "its time to drain is over")

    addresses = [await serve(servicer) for servicer in (Draining(fingerprint="old"), Decoder(fingerprint="new"))]
    pools, shared = gateway(encoders=[], decoders=addresses, failover_wait_seconds=0, **PATIENCE)
    await pools.look()
    pools._all["decoder", addresses[1]].outstanding = 9  # so that the other one is chosen
    request, trail = decoder_pb2.DecodeRequest(), Trail("r")
    with pytest.raises(NotReady):
        async for _ in Decoding(pools, shared).answer("m", request, Deadline(20), trail):
            pass
    assert request.fingerprint == "old" and trail.decoders == [addresses[0]]


async def test_no_label_holds_a_caller_s_data_while_there_is_no_encoder(serve, gateway):
    pools, shared = gateway(encoders=[], decoders=[await serve(Decoder())])
    await pools.look()
    said = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="why?")])
    request = gateway_pb2.GenerateRequest(messages=[said], method=types_pb2.Method(name="made-up"))
    told = [
        m async for m in Requests(pools, shared.metrics, shared.settings).generate(request, Deadline(20), Trail("r"))
    ]
    assert told[-1].finish_reason and b"made-up" not in generate_latest(shared.metrics.registry)


async def test_a_busy_encoder_is_not_gone_while_it_encodes(serve, gateway):
    encoder = Encoder()
    pools, shared = gateway(encoders=[await serve(encoder)], decoders=[], probe_timeout_seconds=0.4)
    encoding = Encoding(pools, shared)
    request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"x")])
    while not pools.of("encoder", "m"):
        await pools.look()
    encoder.patience = 60
    for _ in range(4):
        look = asyncio.create_task(pools.look())
        await asyncio.sleep(0.02)
        assert (await encoding.encode("m", request, Deadline(20), Trail("r"))).fingerprint
        await look
    for _ in range(3):  # nor encodes any more
        await pools.look()
    assert pools._metrics.registry.get_sample_value("fsr_replicas_ready", {"model": "m", "role": "encoder"}) == 0
    with pytest.raises(NotReady):
        await encoding.encode("m", request, Deadline(20), Trail("r"))


async def run_a_canary(pools, shared):
    """To its end."""
    await pools.look()
    canary = Canary(pools, shared.metrics, shared.settings)
    few = types_pb2.CompressedImage(index=[0], source_tokens=4)
    asked = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"x")])
    canary.consider("m", asked, decoder_pb2.DecodeRequest(), encoder_pb2.EncodeResponse(images=[few]))
    await canary._task


@pytest.mark.parametrize("wrong", [Code.UNAVAILABLE, Code.INTERNAL, Code.FAILED_PRECONDITION])
async def test_a_canary_that_fails_takes_no_replica_from_callers(serve, gateway, wrong):
    decoder, encoder = await serve(Decoder(wrong)), await serve(Encoder())
    pools, shared = gateway(encoders=[encoder], decoders=[decoder], canary_share=1.0, eject_failures=1)
    await run_a_canary(pools, shared)
    assert shared.metrics.registry.get_sample_value("fsr_canary_skipped_total", {"reason": "failed"}) == 1
    (replica,) = pools.of("decoder", "m")
    assert replica._checking is None, "suspected, and asked how it is"
    assert not replica.ejection.out


async def test_a_canary_is_not_the_request_on_trial(serve, gateway):
    admitted = []

    class Asked(Decoder):
        async def Decode(self, request, context):
            admitted.extend(replica.ejection.admits for replica in pools._all.values())
            yield decoder_pb2.DecodeResponse(finish_reason=decoder_pb2.FINISH_REASON_STOP)

    decoder, encoder = await serve(Asked()), await serve(Encoder())
    pools, shared = gateway(encoders=[encoder], decoders=[decoder], canary_share=1.0, eject_failures=1)
    await pools.look()
    for replica in pools._all.values():
        replica.ejection.failed()
        replica.ejection._until = 0.0  # its time is over
    await run_a_canary(pools, shared)
    assert admitted == [True, True], "a caller was kept away meanwhile"
    assert all(replica.ejection.out for replica in pools._all.values()), "a caller's request has gone well"
