"""Cancellation and deadlines reach the work behind, and give its memory back."""

import asyncio
from contextlib import aclosing

import grpc
import pytest

from fsr.client import AsyncClient, Client, DeadlineExceeded, OverloadedError
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2
from helpers.waiting import until

# No machine gets to its end while a test looks on.
ENDLESS = {"budget": 16, "max_tokens": 20_000, "ignore_eos": True, "timeout": 600}
SOON = 2_000  # tokens of it that may still come once its caller has gone: a few seconds
QUESTION = "Is there a red star?"


@pytest.fixture(scope="module")
def small(system, spawn, served_model):
    """A gateway in front of one decoder, found by name, that takes one request at a time and lets none wait."""
    decoder = spawn("decoder", *served_model, "--max-running", "1", "--max-waiting", "0")
    name = f"dns:///localhost:{decoder.address.rpartition(':')[2]}"
    flags = ("--encoders", system["encoder"], "--decoders", name, "--discovery-seconds", "0.2")
    gateway = spawn("gateway", *flags)
    decoder.wait_until_serving()
    gateway.wait_until_serving()
    return gateway, decoder


def load(decoder) -> decoder_pb2.DecoderLoad:
    with grpc.insecure_channel(decoder.address) as channel:
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        return stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest()).load


def idle(decoder) -> bool:
    now = load(decoder)
    admitted = now.running or now.waiting or now.kv_bytes_free < now.kv_bytes_capacity
    return not admitted and decoder.metric("fsr_decoder_kv_used_bytes") == 0


def answers_alone(decoder, gateway, picture) -> bool:
    """Whether the engine generates for this caller and for nobody else."""
    before = decoder.generated()
    with Client(gateway.address) as client:
        answer = client.ask(picture, QUESTION, budget=16, max_tokens=100, ignore_eos=True)
    return len(answer.token_ids) == 100 and decoder.generated() - before <= 100


async def test_slot_and_memory_when_the_caller_goes_away_are_freed(small, pictures):
    gateway, decoder = small
    (picture,) = pictures(1, 1)
    cancelled = {"code": "CANCELLED", "rpc": "Generate"}
    before, free = gateway.metric("fsr_requests_total", **cancelled), load(decoder).kv_bytes_free
    async with AsyncClient(gateway.address, replicas=True) as client:
        async with aclosing(client.stream(picture, QUESTION, **ENDLESS)) as chunks:
            first = [await anext(chunks) for _ in range(3)]
            assert load(decoder).running == 1 and load(decoder).kv_bytes_free < free
            with pytest.raises(OverloadedError) as caught:
                await client.ask(picture, QUESTION, budget=16)
            assert caught.value.retry_after is not None
            assert caught.value.route.decoders == (decoder.address,)
            generated = decoder.generated()
        assert all(chunk.finish_reason is None for chunk in first)
        await asyncio.to_thread(until, lambda: idle(decoder))
        assert decoder.generated() - generated < SOON
    assert await asyncio.to_thread(answers_alone, decoder, gateway, picture)
    assert gateway.metric("fsr_requests_total", **cancelled) == before + 1
    assert gateway.metric("fsr_requests_in_flight") == 0


def test_the_work_when_its_deadline_passes_stops(small, pictures):
    """Deadlines come in the middle of an answer: one that passes before the first token is followed by a longer one.

    An attempt that reaches the gateway late counts as cancelled there, because its caller's clock is ahead of the
    gateway's. Then there is another.
    """
    gateway, decoder = small
    (picture,) = pictures(1, 1)
    expired = {"code": "DEADLINE_EXCEEDED", "rpc": "Generate"}
    with Client(gateway.address) as client:
        client.ask(picture, QUESTION, budget=16)
        for seconds in (0.5, 1, 2, 4, 8, 16, 32):
            before, tokens = gateway.metric("fsr_requests_total", **expired), 0
            with pytest.raises(DeadlineExceeded):
                for chunk in client.stream(picture, QUESTION, **ENDLESS | {"timeout": seconds}):
                    tokens += len(chunk.token_ids)
            generated = decoder.generated()
            until(lambda: idle(decoder))
            assert decoder.generated() - generated < SOON
            until(lambda: gateway.metric("fsr_requests_in_flight") == 0)
            if tokens and gateway.metric("fsr_requests_total", **expired) == before + 1:
                break
        else:
            raise AssertionError("no deadline passed in the middle of an answer and was counted")
    assert answers_alone(decoder, gateway, picture)


@pytest.fixture
def encoder(system):
    with grpc.insecure_channel(system["encoder"]) as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


def encode(picture: bytes, **more) -> encoder_pb2.EncodeRequest:
    image, budget = types_pb2.Image(data=picture), types_pb2.Budget(tokens=16)
    return encoder_pb2.EncodeRequest(images=[image], instruction=QUESTION, budget=budget, **more)


def test_the_encoder_when_a_request_is_too_late_leaves_it_undone(encoder, pictures):
    (picture,) = pictures(50, 1)
    with pytest.raises(grpc.RpcError) as caught:
        encoder.Encode(encode(picture, timeout_seconds=1e-6), timeout=120)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # so a gateway asks another encoder
    assert "did not come to the images in time" in caught.value.details()
    assert encoder.Encode(encode(picture, timeout_seconds=120), timeout=120).cache_hits == 0


def test_the_encoder_when_callers_cancel_drops_their_requests(encoder, pictures):
    """Of many calls that are cancelled at once, few are encoded: the cache knows which.

    The pictures are large: to prepare half of them takes the encoder far longer than the test takes to cancel.
    """
    some = pictures(100, 24, large=True)
    calls = [encoder.Encode.future(encode(picture), timeout=600) for picture in some]
    for call in calls:
        call.cancel()
    hits = sum(encoder.Encode(encode(picture), timeout=600).cache_hits for picture in some)
    assert hits < len(some) / 2


def test_the_encoders_log_after_a_callers_mistake_has_no_traceback(system, encoder, pictures):
    log = system["logs"] / "encoder.log"
    before = len(log.read_text())
    for data in (b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with pytest.raises(grpc.RpcError) as caught:
            encoder.Encode(encode(data), timeout=120)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    encoder.Encode(encode(*pictures(60, 1), request_id="after-the-mistakes"), timeout=120)
    # Ray brings the lines over in its own time, but in their order.
    until(lambda: "after-the-mistakes" in log.read_text()[before:])
    assert log.read_text()[before:].count("no readable JPEG") >= 2
    assert "InvalidRequest" not in log.read_text()[before:]  # as it stands at a traceback's end
