"""A real gateway in front of two real decoders, with questions that need no picture."""

import asyncio
import signal
from contextlib import aclosing

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fsr.client import AsyncClient, OverloadedError, UnavailableError
from fsr.v1 import decoder_pb2, decoder_pb2_grpc

LONG = {"max_tokens": 1_000, "ignore_eos": True, "timeout": 600}  # seconds, while a test needs milliseconds of them
ENDLESS = LONG | {"max_tokens": 20_000}


@pytest.fixture(scope="module")
def pair(spawn, long_context):
    """Each decoder takes one request at a time and lets none wait."""
    flags = ("--model", str(long_context), "--max-running", "1", "--max-waiting", "0", "--drain-seconds", "300")
    decoders = [spawn("decoder", *flags) for _ in range(2)]
    addresses = ",".join(decoder.address for decoder in decoders)
    patience = ("--discovery-seconds", "0.3", "--first-token-seconds", "300", "--failover-wait-seconds", "300")
    patience += ("--stall-seconds", "300", "--drain-seconds", "300")
    gateway = spawn("gateway", "--encoders", "127.0.0.1:9", "--decoders", addresses, *patience)
    with grpc.insecure_channel(gateway.address) as channel:
        grpc.channel_ready_future(channel).result(180)
    for decoder in decoders:
        decoder.wait_until_serving()
    return gateway, decoders


@pytest.fixture
async def client(pair):
    async with AsyncClient(pair[0].address, replicas=True) as client, asyncio.timeout(300):
        while not (models := await client.models(timeout=60)) or models[0].decoders < 2:
            await asyncio.sleep(0.1)
        yield client


async def test_a_full_replica_is_passed_over_and_a_full_cluster_refuses(pair, client):
    async with (
        aclosing(client.stream([], "Hello", **ENDLESS)) as first,
        aclosing(client.stream([], "Hi", **ENDLESS)) as second,
    ):
        assert (await anext(first)).token_ids and (await anext(second)).token_ids
        with pytest.raises(OverloadedError) as caught:
            await client.ask([], "Is anybody there?")
        assert set(caught.value.route.decoders) == {decoder.address for decoder in pair[1]}
        assert caught.value.retry_after is not None
    async with asyncio.timeout(120):
        while True:  # the two that went away make room
            try:
                assert (await client.ask([], "Is anybody there?", max_tokens=1)).token_ids
                break
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after)


async def test_a_draining_replica_finishes_its_answer_and_gets_no_more(pair, client):
    decoders = pair[1]
    async with aclosing(client.stream([], "Hello", seed=1, temperature=1.0, **LONG)) as stream:
        chunks = [await anext(stream)]
        busy = await asyncio.to_thread(_busy, decoders)
        busy.send(signal.SIGTERM)
        for _ in range(5):
            answer = await client.ask([], "Is anybody there?", max_tokens=1)
            assert answer.route.decoders[-1] != busy.address
        chunks += [chunk async for chunk in stream]
    assert chunks[-1].route.decoders == (busy.address,) and chunks[-1].usage.failovers == 0
    assert sum(len(chunk.token_ids) for chunk in chunks) == LONG["max_tokens"]
    assert await asyncio.to_thread(busy.end, signal.SIGTERM) == 0
    busy.start()


async def test_a_draining_gateway_finishes_its_answer_and_takes_no_more(pair, client):
    gateway, _ = pair
    async with aclosing(client.stream([], "Hello", **LONG)) as stream:
        chunks = [await anext(stream)]
        gateway.send(signal.SIGTERM)
        with pytest.raises(UnavailableError, match="shutting down") as caught:  # and nothing else, whenever it comes
            while True:
                await client.ask([], "Is anybody there?", max_tokens=1)
        assert caught.value.retry_after and caught.value.route.request_id
        with pytest.raises(UnavailableError, match="shutting down"):
            await client.models()
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        chunks += [chunk async for chunk in stream]
    assert sum(len(chunk.token_ids) for chunk in chunks) == LONG["max_tokens"] and chunks[-1].finish_reason
    assert await asyncio.to_thread(gateway.end, signal.SIGTERM) == 0
    gateway.start()
    async with grpc.aio.insecure_channel(gateway.address) as channel, asyncio.timeout(180):
        await channel.channel_ready()


async def test_a_stream_without_a_replica_waits_for_one_to_come_back(pair, client):
    """Both decoders die in the middle of it; the answer goes on where it was once one has restarted."""
    question = {"seed": 3, "temperature": 1.0, **LONG}
    whole = await client.ask([], "Tell me", **question)
    async with aclosing(client.stream([], "Tell me", **question)) as stream:
        chunks = [await anext(stream) for _ in range(10)]
        await asyncio.to_thread(_busy, pair[1])  # it is in the middle of the answer
        for decoder in pair[1]:
            decoder.end(signal.SIGKILL)
        pair[1][0].start()
        chunks += [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(i for chunk in chunks for i in chunk.token_ids) == whole.token_ids
    assert chunks[-1].usage.failovers >= 1 and chunks[-1].usage.completion_tokens == LONG["max_tokens"]
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def _busy(decoders):
    """The decoder that answers something now."""
    for decoder in decoders:
        with grpc.insecure_channel(decoder.address) as channel:
            stub = decoder_pb2_grpc.DecoderServiceStub(channel)
            if stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest(), timeout=60).load.running:
                return decoder
    raise AssertionError("nobody is busy")
