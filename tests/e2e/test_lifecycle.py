"""Cancellation and deadlines reach the work behind, and give its memory back."""

import asyncio
import time
import urllib.request
from contextlib import aclosing

import grpc
import pytest

from fsr.client import AsyncClient, Client, DeadlineExceeded, OverloadedError
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2

SOON = 200  # tokens: of the 900 of a long answer, the most after its caller has gone
LONG = {"budget": 16, "max_tokens": 900, "ignore_eos": True}
QUESTION = "Is there a red star?"


@pytest.fixture(scope="module")
def small(system, spawn):
    """A gateway in front of one decoder, found by name, that takes one request at a time and lets none wait."""
    decoder = spawn("decoder", "--max-running", "1", "--max-waiting", "0")
    name = f"dns:///localhost:{decoder.address.rpartition(':')[2]}"
    flags = ("--encoders", system["encoder"], "--decoders", name, "--discovery-seconds", "0.2")
    gateway = spawn("gateway", *flags)
    decoder.wait_until_serving()
    gateway.wait_until_serving()
    return gateway, decoder


def value(service, name: str) -> float:
    page = urllib.request.urlopen(f"http://{service.metrics}/metrics").read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def load(decoder) -> decoder_pb2.DecoderLoad:
    with grpc.insecure_channel(decoder.address) as channel:
        told = decoder_pb2_grpc.DecoderServiceStub(channel).DescribeDecoder(decoder_pb2.DescribeDecoderRequest())
    return told.load


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def idle(decoder) -> bool:
    now = load(decoder)
    admitted = now.running or now.waiting or now.kv_bytes_free < now.kv_bytes_capacity
    return not admitted and value(decoder, "fsr_decoder_kv_used_bytes") == 0


def generated(decoder) -> float:
    """Tokens that the engine itself has counted, whether or not anybody took them."""
    return value(decoder, "fsr_decoder_batch_size_sum")


async def test_a_caller_that_goes_away_frees_slot_and_memory(small, pictures):
    gateway, decoder = small
    (picture,) = pictures(1, 1)
    before = [value(gateway, 'fsr_requests_total{code="CANCELLED",rpc="Generate"}'), load(decoder).kv_bytes_free]
    async with AsyncClient(gateway.address) as client:
        async with aclosing(client.stream(picture, QUESTION, **LONG)) as chunks:
            seen = [await anext(chunks) for _ in range(3)]
            assert load(decoder).running == 1 and load(decoder).kv_bytes_free < before[1]
            with pytest.raises(OverloadedError) as caught:
                await client.ask(picture, QUESTION, budget=16)
            assert caught.value.retry_after is not None
            assert caught.value.route.decoders == (decoder.address,)
            said = generated(decoder)
        assert all(chunk.finish_reason is None for chunk in seen)
        await asyncio.to_thread(until, lambda: idle(decoder))
        assert generated(decoder) - said < SOON
        assert (await client.ask(picture, QUESTION, budget=16)).text
    assert value(gateway, 'fsr_requests_total{code="CANCELLED",rpc="Generate"}') == before[0] + 1
    assert value(gateway, "fsr_requests_in_flight") == 0


def test_an_expired_deadline_stops_the_work_behind(small, pictures):
    gateway, decoder = small
    (picture,) = pictures(1, 1)
    with Client(gateway.address) as client:
        client.ask(picture, QUESTION, budget=16)
        name = 'fsr_requests_total{code="DEADLINE_EXCEEDED",rpc="Generate"}'
        before = value(gateway, name)
        with pytest.raises(DeadlineExceeded):
            client.ask(picture, QUESTION, timeout=0.3, **LONG)
        said = generated(decoder)
        until(lambda: idle(decoder))
        assert generated(decoder) - said < SOON
        until(lambda: value(gateway, name) == before + 1)
        assert client.ask(picture, QUESTION, budget=16).text


@pytest.fixture
def encoder(system):
    with grpc.insecure_channel(system["encoder"]) as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


def encode(picture: bytes, **more) -> encoder_pb2.EncodeRequest:
    image, budget = types_pb2.Image(data=picture), types_pb2.Budget(tokens=16)
    return encoder_pb2.EncodeRequest(images=[image], instruction=QUESTION, budget=budget, **more)


def test_the_encoder_leaves_undone_what_is_too_late(encoder, pictures):
    (picture,) = pictures(50, 1)
    with pytest.raises(grpc.RpcError) as caught:
        encoder.Encode(encode(picture, timeout_seconds=1e-6), timeout=20)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "before the encoder came to it" in caught.value.details()
    assert encoder.Encode(encode(picture, timeout_seconds=20), timeout=20).cache_hits == 0


def test_the_encoder_drops_what_its_caller_has_cancelled(encoder, pictures):
    """Of many calls that are cancelled at once, few are encoded: the cache knows which."""
    some = pictures(100, 24)
    calls = [encoder.Encode.future(encode(picture), timeout=60) for picture in some]
    for call in calls:
        call.cancel()
    known = sum(encoder.Encode(encode(picture), timeout=60).cache_hits for picture in some)
    assert known < len(some) / 2


def test_a_callers_mistake_leaves_no_traceback(system, encoder):
    log = system["logs"] / "encoder.log"
    before = len(log.read_text())
    for data in (b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with pytest.raises(grpc.RpcError) as caught:
            encoder.Encode(encode(data), timeout=20)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    until(lambda: log.read_text()[before:].count("no readable JPEG") >= 2)  # Ray brings the lines over in its own time
    assert "InvalidRequest" not in log.read_text()[before:]  # as it stands at a traceback's end
