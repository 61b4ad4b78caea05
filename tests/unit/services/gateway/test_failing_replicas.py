"""What happens to replicas that fail their requests, although their health check succeeds."""

import asyncio
import contextlib
import gc
import weakref
from contextlib import aclosing

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from prometheus_client import generate_latest

from fsr.common.errors import Expired, NotReady, Overloaded, ServiceError
from fsr.gateway.callers.auth import ANYBODY
from fsr.gateway.canary.canary import Canary
from fsr.gateway.hops.decoder_hop import DecoderHop
from fsr.gateway.hops.encoder_hop import EncoderHop
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import RetryPolicy
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, gateway_pb2, types_pb2

Code = grpc.StatusCode
# So long a hanging replica is waited for. It is enough for a healthy one on a busy machine.
PATIENCE = {"first_token_seconds": 1.0, "stall_seconds": 1.0}
ROLES = ("encoder", "decoder")
MODEL = types_pb2.ModelDescription(model="m", fingerprint="f")


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    """Healthy by its health check. Every request fails as `wrong` says, after `first` messages; None answers it, after
    `prefill` messages that say nothing and come slowly."""

    def __init__(self, wrong=None, first=0, fingerprint="f", prefill=0):
        self.wrong, self.first, self.fingerprint, self.prefill, self.calls = wrong, first, fingerprint, prefill, 0

    async def DescribeDecoder(self, request, context):
        model = types_pb2.ModelDescription(model="m", fingerprint=self.fingerprint)
        return decoder_pb2.DescribeDecoderResponse(model=model)

    async def Decode(self, request, context):
        self.calls += 1
        for _ in range(self.prefill):
            await asyncio.sleep(PATIENCE["first_token_seconds"] / 2)
            yield decoder_pb2.DecodeResponse()
        if self.wrong is None:
            yield decoder_pb2.DecodeResponse(finish_reason=decoder_pb2.FINISH_REASON_STOP)
            return
        for token in range(self.first):
            yield decoder_pb2.DecodeResponse(token_ids=[token])
        if self.wrong == "hangs":
            await asyncio.sleep(60)
        await context.abort(self.wrong, "out of order")


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Answers a probe after `probe_seconds`, and encodes at once.

    Each image becomes `image`, unless it is to fail with the status `wrong`.
    """

    probe_seconds = 0.0
    image = types_pb2.CompressedImage(
        index=[0],
        source_tokens=2,
        features=types_pb2.Tensor(dtype=types_pb2.DTYPE_BF16, shape=[1, 1], data=b"12"),
    )

    def __init__(self, wrong=None):
        self.wrong, self.calls = wrong, 0

    async def DescribeEncoder(self, request, context):
        await asyncio.sleep(self.probe_seconds)
        return encoder_pb2.DescribeEncoderResponse(model=MODEL)

    async def Encode(self, request, context):
        self.calls += 1
        if self.wrong == "hangs":
            await asyncio.sleep(60)
        if self.wrong is not None:
            await context.abort(self.wrong, "Traceback: ray.exceptions.RayActorError, pid 4711 at 10.0.0.7:40000")
        return encoder_pb2.EncodeResponse(fingerprint="f", images=[self.image] * len(request.images))


@pytest.fixture
async def serve():
    servers = []

    async def start(servicer):
        """Its address."""
        server = grpc.aio.server()
        if isinstance(servicer, Garbage):
            server.add_generic_rpc_handlers((servicer,))
        elif isinstance(servicer, Decoder):
            decoder_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)
        else:
            encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server)
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        await health.set("fsr.v1.DecoderService", health_pb2.HealthCheckResponse.SERVING)
        servers.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


@pytest.fixture
async def gateway(clock):
    all_pools = []

    def make(**options):
        """Pools, and what their requests share; both count in the same metrics."""
        settings, metrics = GatewaySettings(**options), Metrics()
        all_pools.append(Pools(settings, metrics, clock))
        return all_pools[-1], RetryPolicy(settings, metrics, RetryBudget(1.0, 100))

    yield make
    for pools in all_pools:
        await pools.close()


def context():
    return RequestContext(ANYBODY, Deadline(20), RequestRecord(request_id="r"))


async def test_replica_when_it_is_at_work_on_a_long_prompt_is_waited_for(serve, gateway):
    slow = Decoder(prefill=4)
    pools, policy = gateway(encoders=[], decoders=[await serve(slow)], **PATIENCE)
    await pools.refresh()
    asked = context()
    async with aclosing(DecoderHop(pools, policy).answer("m", decoder_pb2.DecodeRequest(), asked)) as messages:
        assert [message.finish_reason async for _, message in messages] == [decoder_pb2.FINISH_REASON_STOP]
    assert (slow.calls, asked.record.failovers) == (1, 0)


@pytest.mark.parametrize(
    ("wrong", "first"),
    [("hangs", 0), ("hangs", 2), (Code.UNAVAILABLE, 0), (Code.UNAVAILABLE, 2), (Code.INTERNAL, 0), (Code.INTERNAL, 2)],
)
async def test_breaker_when_a_healthy_replica_fails_requests_opens(serve, gateway, wrong, first):
    bad, good = Decoder(wrong, first), Decoder()
    addresses = [await serve(bad), await serve(good)]
    patience = PATIENCE if wrong == "hangs" else {}
    pools, policy = gateway(encoders=[], decoders=addresses, eject_failures=3, eject_seconds=60, **patience)
    hop = DecoderHop(pools, policy)
    for _ in range(40):
        await pools.refresh()  # all are healthy
        request, at = decoder_pb2.DecodeRequest(), context()
        async with aclosing(hop.answer("m", request, at)) as answer:
            messages = [message async for _, message in answer]
        assert messages[-1].finish_reason and at.record.decoders[-1] == addresses[1]
        assert request == decoder_pb2.DecodeRequest()  # it is the caller's
    assert (bad.calls, good.calls) == (3, 40)


class Garbage(grpc.GenericRpcHandler):
    """Answers each call of a service with bytes: a description as it should be, and else what no protobuf is."""

    def __init__(self, description=None, after=()):
        self.description, self.after, self.calls = description, after, 0

    def service(self, details):
        if "Health" in details.method:
            return None
        describes = "Describe" in details.method

        async def method(request, context):
            if describes and self.description is not None:
                yield self.description.SerializeToString()
                return
            self.calls += not describes
            for message in () if describes else self.after:
                yield message.SerializeToString()
            yield b"\xff" * 9

        return grpc.unary_stream_rpc_method_handler(method)


ENCODES = encoder_pb2.DescribeEncoderResponse(model=MODEL)
DECODES = decoder_pb2.DescribeDecoderResponse(model=MODEL)


@pytest.mark.parametrize("first", [0, 2])
async def test_answer_when_a_decoder_s_message_cannot_be_read_moves_to_another(serve, gateway, first):
    bad = Garbage(DECODES, [decoder_pb2.DecodeResponse(token_ids=[token]) for token in range(first)])
    good = Decoder()
    addresses = [await serve(bad), await serve(good)]
    pools, policy = gateway(encoders=[], decoders=addresses, eject_failures=3, eject_seconds=60)
    hop = DecoderHop(pools, policy)
    for _ in range(40):
        await pools.refresh()
        at = context()
        async with aclosing(hop.answer("m", decoder_pb2.DecodeRequest(), at)) as answer:
            tokens = [token async for _, message in answer for token in message.token_ids]
        assert tokens in ([], list(range(first))) and at.record.decoders[-1] == addresses[1]
    assert (bad.calls, good.calls) == (3, 40), "its breaker did not open"


def without(field, **changes):
    """An encoder's image that is not as it should be."""
    image = types_pb2.CompressedImage()
    image.CopyFrom(Encoder.image)
    image.ClearField(field)
    image.MergeFrom(types_pb2.CompressedImage(**changes))
    return image


@pytest.mark.parametrize(
    "images",
    [
        None,
        [],
        [Encoder.image] * 2,
        [without("index")],
        [without("source_tokens")],
        [without("merged_count", merged_count=2)],
        [without("focus_count", focus_count=2)],
        [without("newlines", newlines=[1])],
        [without("features", features=types_pb2.Tensor(dtype=types_pb2.DTYPE_BF16, shape=[1, 2], data=b"12"))],
        [without("features", features=types_pb2.Tensor(dtype=77, shape=[1, 1], data=b"12"))],
        [without("features")],
    ],
)
async def test_images_when_an_encoder_s_reply_cannot_be_used_come_from_another(serve, gateway, images):
    class Odd(Encoder):
        async def Encode(self, request, context):
            return encoder_pb2.EncodeResponse(fingerprint="odd", images=images)

    bad = await serve(Garbage(ENCODES) if images is None else Odd())
    pools, policy = gateway(encoders=[bad, await serve(Encoder())], decoders=[], eject_failures=3, eject_seconds=60)
    while len(pools.serving("encoder", "m")) < 2:
        await pools.refresh()
    hop, called = EncoderHop(pools, policy), []
    for number in range(40):
        request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"%d" % number)])
        at = context()
        encoded, _ = await hop.encode("m", request, at)
        assert encoded.fingerprint == "f"
        called += at.record.encoders
    assert called.count(bad) == 3


@pytest.mark.parametrize("description", [None, decoder_pb2.DescribeDecoderResponse()], ids=["unreadable", "empty"])
async def test_replica_when_its_description_cannot_be_read_is_down(serve, gateway, description):
    """And the others stay up: the look at the replicas goes on."""
    bad = await serve(Garbage(description))
    pools, _ = gateway(encoders=[bad, await serve(Encoder())], decoders=[bad, await serve(Decoder())])
    while not pools.ready("m"):
        await pools.refresh()
    await pools.refresh()
    assert pools.models() == ["m"] and bad not in {r.address for role in ROLES for r in pools.serving(role, "m")}


async def test_text_when_a_checkpoint_began_its_answer_is_finished_by_it(serve, gateway):
    old, same, new = Decoder(Code.UNAVAILABLE, 2, "old"), Decoder(None, 0, "old"), Decoder(None, 0, "new")
    addresses = [await serve(servicer) for servicer in (old, same, new)]
    pools, policy = gateway(encoders=[], decoders=addresses, eject_failures=1000)
    hop = DecoderHop(pools, policy)
    routes = set()
    for _ in range(60):
        await pools.refresh()
        at = context()
        async with aclosing(hop.answer("m", decoder_pb2.DecodeRequest(), at)) as answer:
            tokens = [token async for _, message in answer for token in message.token_ids]
        began_by_old = at.record.decoders[0] == addresses[0]
        assert tokens == ([0, 1] if began_by_old else []) and len(at.record.decoders) == 1 + began_by_old
        routes.add(tuple(addresses.index(address) for address in at.record.decoders))
    assert routes == {(0, 1), (1,), (2,)}


async def test_text_when_its_decoder_drains_before_the_first_token_stays_with_the_checkpoint(serve, gateway):
    class Draining(Decoder):
        async def Decode(self, request, context):
            by_address[addresses[0]].down("not serving")  # as a probe does
            yield decoder_pb2.DecodeResponse(token_ids=[0])
            await context.abort(Code.UNAVAILABLE, "its time to drain is over")

    other = Decoder(fingerprint="new")
    addresses = [await serve(servicer) for servicer in (Draining(fingerprint="old"), other)]
    pools, policy = gateway(encoders=[], decoders=addresses, failover_wait_seconds=0, **PATIENCE)
    await pools.refresh()
    by_address = {replica.address: replica for replica in pools.all("decoder")}
    by_address[addresses[1]].outstanding = 9  # so that the first one is picked
    at = context()
    with pytest.raises(NotReady):
        async for _ in DecoderHop(pools, policy).answer("m", decoder_pb2.DecodeRequest(), at):
            pass
    assert at.record.decoders == [addresses[0]] and not other.calls


async def test_labels_when_there_is_no_encoder_hold_no_caller_s_data(serve, gateway):
    pools, policy = gateway(encoders=[], decoders=[await serve(Decoder())])
    await pools.refresh()
    message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="why?")])
    request = gateway_pb2.GenerateRequest(messages=[message], method=types_pb2.Method(name="made-up"))
    pipeline = Pipeline(pools, policy.metrics, policy.settings)
    responses = [response async for response in pipeline.generate(request, context())]
    assert responses[-1].finish_reason and b"made-up" not in generate_latest(policy.metrics.registry)


async def test_encoder_when_it_is_too_busy_for_probes_stays_up_while_it_encodes(serve, gateway):
    encoder = Encoder()
    options = {"probe_timeout_seconds": 0.4, "failover_wait_seconds": 0}
    pools, policy = gateway(encoders=[await serve(encoder)], decoders=[], **options)
    hop = EncoderHop(pools, policy)
    request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"x")])
    while not pools.serving("encoder", "m"):
        await pools.refresh()
    encoder.probe_seconds = 60
    for _ in range(4):
        refresh = asyncio.create_task(pools.refresh())
        await asyncio.sleep(0.02)
        encoded, _ = await hop.encode("m", request, context())
        assert encoded.fingerprint
        await refresh
    for _ in range(3):  # now it does not encode either
        await pools.refresh()
    assert policy.metrics.registry.get_sample_value("fsr_replicas_ready", {"model": "m", "role": "encoder"}) == 0
    with pytest.raises(NotReady):
        await hop.encode("m", request, context())


async def encode_by(pools, policy, seconds=20):
    at = RequestContext(ANYBODY, Deadline(seconds), RequestRecord(request_id="r"))
    request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"x")])
    await pools.refresh()
    encoded, _ = await EncoderHop(pools, policy).encode("m", request, at)
    return encoded


def breakers(pools):
    return {replica.breaker.state for replica in pools.all("encoder")}


@pytest.mark.parametrize("seconds", [20, 1])
async def test_images_when_they_take_an_encoder_too_long_go_to_no_other_and_blame_none(serve, gateway, seconds):
    encoders = [Encoder(Code.DEADLINE_EXCEEDED), Encoder(Code.DEADLINE_EXCEEDED)]
    addresses = [await serve(encoder) for encoder in encoders]
    pools, policy = gateway(encoders=addresses, decoders=[], eject_failures=1)
    for calls in (1, 2, 3):
        with pytest.raises(Expired, match=r"^images: took longer than [\d.]+ s to encode; send fewer or smaller ones"):
            await encode_by(pools, policy, seconds)
        assert sum(encoder.calls for encoder in encoders) == calls and breakers(pools) == {"closed"}


async def test_images_when_an_encoder_does_not_come_to_them_go_to_another_one_that_is_not_blamed(serve, gateway):
    busy, free = Encoder(Code.RESOURCE_EXHAUSTED), Encoder()
    pools, policy = gateway(encoders=[await serve(busy), await serve(free)], decoders=[], eject_failures=1)
    for _ in range(4):
        assert (await encode_by(pools, policy)).fingerprint
    assert free.calls == 4 and breakers(pools) == {"closed"}
    free.wrong = Code.RESOURCE_EXHAUSTED
    with pytest.raises(Overloaded, match=r"^encoder: has no room for more requests; try again"):
        await encode_by(pools, policy)


async def test_images_when_an_encoder_does_not_answer_go_to_another_one(serve, gateway):
    hanging, free = Encoder("hangs"), Encoder()
    pools, policy = gateway(
        encoders=[await serve(hanging), await serve(free)], decoders=[], eject_failures=1, encode_seconds=0.3
    )
    for _ in range(3):
        assert (await encode_by(pools, policy)).fingerprint
    assert hanging.calls <= 1 and free.calls == 3


@pytest.mark.parametrize("wrong", [Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
async def test_error_when_a_replica_tells_of_its_internals_keeps_them_from_the_caller(serve, gateway, wrong):
    address = await serve(Encoder(wrong))
    pools, policy = gateway(encoders=[address], decoders=[], failover_wait_seconds=0)
    with structlog.testing.capture_logs() as lines, pytest.raises(ServiceError) as caught:
        await encode_by(pools, policy)
    told = str(caught.value)
    assert told.startswith("encoder: ") and not any(part in told for part in (address, "ray", "pid", "10.0.0.7"))
    if wrong != Code.RESOURCE_EXHAUSTED:
        assert any(line.get("replica") == address and "pid 4711" in line["details"] for line in lines)


@pytest.mark.parametrize("wrong", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, "undeployed"])
async def test_request_when_its_encoders_fail_is_not_kept(serve, gateway, wrong):
    """Neither by the error nor by what the error's frames hold: a request may be 64 MiB large."""
    encoder = Encoder(Code.NOT_FOUND if wrong == "undeployed" else wrong)
    pools, policy = gateway(encoders=[await serve(encoder)], decoders=[], failover_wait_seconds=0)
    gc.collect()
    gc.disable()
    try:
        record = RequestRecord(request_id="r")
        at, watched = RequestContext(ANYBODY, Deadline(20), record), weakref.ref(record)
        del record
        await pools.refresh()
        request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"x")])
        with contextlib.suppress(ServiceError):
            await EncoderHop(pools, policy).encode("m", request, at)
        del at
        assert encoder.calls == 1 and watched() is None
    finally:
        gc.enable()


def canary_outcomes(metrics):
    value = metrics.registry.get_sample_value
    skipped = {reason: value("fsr_canary_skipped_total", {"reason": reason}) for reason in ("busy", "shed", "failed")}
    by = {"model": "m", "method": "fsr", "budget": "0.5"}
    return {"answers": value("fsr_canary_answers_total", by) or 0, **skipped}


async def run_a_canary(pools, policy):
    """To its end; how it ended."""
    canary = Canary(pools, policy.metrics, policy.settings)
    few = types_pb2.CompressedImage(index=[0], source_tokens=2)
    request = encoder_pb2.EncodeRequest(images=[types_pb2.Image(data=b"x")], method=types_pb2.Method(name="fsr"))
    encoded = encoder_pb2.EncodeResponse(images=[few])
    canary.consider("m", request, decoder_pb2.DecodeRequest(), encoded, [])
    async with asyncio.timeout(30):
        while not any(canary_outcomes(policy.metrics).values()):
            await asyncio.sleep(0.01)
    (outcome,) = [name for name, count in canary_outcomes(policy.metrics).items() if count]
    return outcome


@pytest.mark.parametrize("wrong", [Code.UNAVAILABLE, Code.INTERNAL, Code.FAILED_PRECONDITION])
async def test_canary_when_it_fails_takes_no_replica_from_callers(serve, gateway, wrong):
    decoder, encoder = await serve(Decoder(wrong)), await serve(Encoder())
    pools, policy = gateway(encoders=[encoder], decoders=[decoder], canary_share=1.0, eject_failures=1)
    await pools.refresh()
    with structlog.testing.capture_logs() as lines:
        assert await run_a_canary(pools, policy) == "failed"
    (replica,) = pools.serving("decoder", "m")
    assert replica.breaker.state == "closed"
    assert {line["event"] for line in lines} == {"canary failed"}, "the replica went down for a moment"


async def test_canary_when_a_breaker_is_half_open_is_not_the_call_that_it_lets_through(serve, gateway, clock):
    allowed = []

    class Watched(Decoder):
        async def Decode(self, request, context):
            allowed.extend(
                replica.breaker.allows_call for role in ("encoder", "decoder") for replica in pools.all(role)
            )
            yield decoder_pb2.DecodeResponse(finish_reason=decoder_pb2.FINISH_REASON_STOP)

    decoder, encoder = await serve(Watched()), await serve(Encoder())
    pools, policy = gateway(encoders=[encoder], decoders=[decoder], canary_share=1.0, eject_failures=1)
    await pools.refresh()
    replicas = pools.all("encoder") + pools.all("decoder")
    for replica in replicas:
        replica.breaker.failed()
    clock.now += 60
    assert await run_a_canary(pools, policy) == "answers"
    assert allowed == [True, True], "a caller was kept away meanwhile"
    assert {replica.breaker.state for replica in replicas} == {"half-open"}, "a canary closed it"
