"""Gateways die under many streams, and connections are cut at random: no answer is lost, and none differs.

The questions need no picture, so there is no encoder; `tests/e2e/test_chaos.py` asks about pictures.
"""

import asyncio
import signal
from contextlib import aclosing, asynccontextmanager

import openai
import pytest

from fsr.client import AsyncClient, Client, InvalidRequestError
from fsr.v1 import gateway_pb2, types_pb2
from helpers.networks import CutConnections
from helpers.waiting import until, wait_until_generating

pytestmark = pytest.mark.timeout(900)
STREAMS, TOKENS = 32, 160
# All patience is longer than a busy machine takes for anything. Only what is lost counts.
PATIENCE = ("--discovery-seconds", "0.3", "--probe-timeout-seconds", "60", "--stall-seconds", "600")
PATIENCE += ("--max-failovers", "1000", "--retry-burst", "100000")  # on a busy machine, cuts outnumber tokens
PATIENCE += ("--first-token-seconds", "600", "--failover-wait-seconds", "300", "--max-requests", "128")


def options(number: int) -> dict:
    """Of request `number`: every other one is sampled."""
    sampling = {"temperature": 1.5, "top_p": 0.95, "seed": number} if number % 2 else {}
    return {"max_tokens": TOKENS, "ignore_eos": True, **sampling}


async def ask(client: AsyncClient, number: int):
    return await client.ask([], f"Tell me about {number} stars", timeout=600, **options(number))


async def answers(*clients: AsyncClient, disturb=lambda: None, count=STREAMS):
    """`count` answers at a time, in turn by each client; `disturb` runs beside them."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(clients[number % len(clients)], number)) for number in range(count)]
        await asyncio.to_thread(disturb)
    return [task.result() for task in tasks]


def contents(found):
    return [(one.text, one.token_ids, one.finish_reason, one.usage.completion_tokens) for one in found]


@pytest.fixture(scope="module")
def decoders(spawn, served_model):
    decoders = [spawn("decoder", *served_model) for _ in range(2)]
    for decoder in decoders:
        decoder.wait_until_serving()
    return decoders


@pytest.fixture(scope="module")
def start_gateway(spawn, free_ports):
    """Starts a gateway in front of these decoders; returns it when it knows both."""

    def start(addresses, *flags):
        http = free_ports()
        gateway = spawn(
            "gateway", "--encoders", "127.0.0.1:9", "--decoders", ",".join(addresses), "--http-port", str(http), *flags
        )
        gateway.base_url = f"http://127.0.0.1:{http}/v1"
        wait_for_decoders(gateway, len(addresses))
        return gateway

    return start


def wait_for_decoders(gateway, count):
    with Client(gateway.address) as client:

        def known():
            try:
                return [model.decoders for model in client.models(timeout=60)] == [count]
            except Exception:
                return False

        until(known)


@pytest.fixture(scope="module")
def gateways(decoders, start_gateway):
    addresses = [decoder.address for decoder in decoders]
    return [start_gateway(addresses, *PATIENCE, "--drain-seconds", "0.2") for _ in range(2)]


@pytest.fixture(scope="module")
def undisturbed(gateways):
    async def run():
        async with AsyncClient(gateways[0].address) as client:
            return await answers(client)

    found = asyncio.run(run())
    assert all(len(one.token_ids) == TOKENS and one.resumed == 0 for one in found)
    return contents(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_streams_when_one_of_two_gateways_ends_go_on_at_the_other(gateways, decoders, undisturbed, number):
    victim, other = gateways

    def end():
        """No answer ends while the gateway does: the decoders are frozen meanwhile."""
        wait_until_generating(decoders, answers=16, tokens=200)  # of at least 16 * 160
        for decoder in decoders:
            decoder.send(signal.SIGSTOP)
        try:
            victim.end(number)
        finally:
            for decoder in decoders:
                decoder.send(signal.SIGCONT)

    try:
        async with (
            AsyncClient([victim.address, other.address]) as one,
            AsyncClient([other.address, victim.address]) as two,
        ):
            found = await answers(one, two, disturb=end)
    finally:
        victim.start()
        await asyncio.to_thread(wait_for_decoders, victim, len(decoders))
    assert contents(found) == undisturbed
    assert sum(answer.resumed for answer in found[::2]) >= 8
    assert not any(answer.resumed for answer in found[1::2])


async def test_stream_when_the_only_gateway_dies_and_comes_back_goes_on(gateways, decoders, undisturbed):
    gateway = gateways[0]

    def restart():
        until(lambda: sum(decoder.metric("fsr_decoder_running_requests") for decoder in decoders) >= 4)
        gateway.end(signal.SIGKILL)
        gateway.start()

    async with AsyncClient(gateway.address, resume_seconds=300) as client:
        found = await answers(client, disturb=restart, count=8)
    assert contents(found) == undisturbed[:8] and any(answer.resumed for answer in found)


def test_synchronous_client_goes_on_at_the_next_gateway(gateways, undisturbed):
    victim, other = gateways
    wait_for_decoders(victim, 2)
    with Client([victim.address, other.address]) as client:
        chunks = []
        for chunk in client.stream([], "Tell me about 1 stars", timeout=600, **options(1)):
            chunks.append(chunk)
            if len(chunks) == 5:
                victim.end(signal.SIGKILL)
    victim.start()
    assert "".join(chunk.text for chunk in chunks) == undisturbed[1][0]
    assert [token for chunk in chunks for token in chunk.token_ids] == list(undisturbed[1][1])
    assert chunks[0].resumed == 0 and chunks[-1].resumed == 1


@pytest.mark.parametrize("number", [0, 1])
async def test_stream_by_http_is_resumed_by_another_gateway(gateways, undisturbed, number):
    """Also one that came from the SDK's interface: both interfaces lead to one pipeline."""
    for gateway in gateways:
        await asyncio.to_thread(wait_for_decoders, gateway, 2)

    async def part(gateway, most, **fsr):
        """Text, ids and fingerprint of the first chunks of a stream."""
        text, ids, fingerprint = "", [], ""
        client = openai.AsyncOpenAI(base_url=gateway.base_url, api_key="none", max_retries=0, timeout=600)
        sampling = options(number)
        body = {"ignore_eos": sampling.pop("ignore_eos"), "fsr": {"resumable": True, "timeout": 600, **fsr}}
        async with client:
            messages = [{"role": "user", "content": f"Tell me about {number} stars"}]
            stream = await client.chat.completions.create(
                model="", messages=messages, stream=True, extra_body=body, **sampling
            )
            async for chunk in stream:
                ours = chunk.model_extra["fsr"]
                text += chunk.choices[0].delta.content
                ids += ours["token_ids"]
                fingerprint = fingerprint or ours["fingerprint"]
                if len(ids) >= most:
                    await stream.close()
                    break
        return text, ids, fingerprint

    text, ids, fingerprint = await part(gateways[0], 40)
    resume = {"token_ids": ids, "fingerprint": fingerprint}
    rest, others, same = await part(gateways[1], 10_000, resume=resume)
    assert (text + rest, tuple(ids + others)) == undisturbed[number][:2] and same == fingerprint


async def test_resume_with_ids_that_no_decoder_sent_is_the_callers_mistake(gateways):
    async with AsyncClient(gateways[0].address) as client:
        for ids, sampling, says in (
            ([5, 2**31], {}, r"^resume\.token_ids\[1\]: 2147483648 is not in the model's vocabulary"),
            ([5, 6, 7], {"max_tokens": 2}, r"^resume\.token_ids: 3 are more than sampling\.max_tokens, 2"),
            ([5] * 40_000, {"max_tokens": 0}, r"^resume\.token_ids: 40000 are more than \d+, the most tokens"),
        ):
            request = gateway_pb2.GenerateRequest(
                messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="?")])],
                resume=gateway_pb2.Resume(token_ids=ids),
                sampling=types_pb2.Sampling(**sampling),
            )
            with pytest.raises(InvalidRequestError, match=says):
                async for _ in client.generate(request):
                    pass


async def test_answer_that_is_complete_already_ends_at_once(gateways, undisturbed):
    """Its last message was lost: the reason and the figures come."""
    _, ids, reason, count = undisturbed[0]
    request = gateway_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="Tell me about 0 stars")])],
        resume=gateway_pb2.Resume(token_ids=ids),
        sampling=types_pb2.Sampling(max_tokens=TOKENS, ignore_eos=True),
    )
    async with AsyncClient(gateways[0].address) as client, aclosing(client.generate(request)) as chunks:
        (only,) = [chunk async for chunk in chunks]
    assert (only.finish_reason, only.usage.completion_tokens, only.token_ids) == (reason, count, ())


@asynccontextmanager
async def bad_network(*targets: str, share=0.02, most=None):
    """Addresses that lead to the targets by connections that are cut at random."""
    async with CutConnections(targets[0], share, seed=1, most=most).listening() as first:
        if len(targets) == 1:
            yield [first]
            return
        async with bad_network(*targets[1:], share=share, most=most) as others:
            yield [first, *others]


async def test_answers_when_connections_to_decoders_are_cut_at_random_are_whole(decoders, start_gateway, undisturbed):
    async with bad_network(*(decoder.address for decoder in decoders)) as networks:
        gateway = await asyncio.to_thread(start_gateway, [network.address for network in networks], *PATIENCE)
        try:
            async with AsyncClient(gateway.address) as client:
                found = await answers(client)
                found += await answers(client, count=20)
        finally:
            gateway.end(signal.SIGKILL)
        cut = sum(network.cut for network in networks)
    assert contents(found) == undisturbed + undisturbed[:20]
    assert cut >= 3 and sum(one.usage.failovers for one in found) >= 8


async def test_answers_when_connections_to_the_gateway_are_cut_at_random_are_whole(gateways, undisturbed):
    for gateway in gateways:
        await asyncio.to_thread(wait_for_decoders, gateway, 2)
    async with bad_network(*(gateway.address for gateway in gateways), most=4) as networks:
        # It gives up after more than eight losses in a row.
        async with AsyncClient([network.address for network in networks], resume_seconds=600) as client:
            found = await answers(client)
        assert sum(network.cut for network in networks) >= 2
    assert contents(found) == undisturbed and sum(one.resumed for one in found) >= 8
