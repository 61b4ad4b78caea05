"""Real processes are killed, frozen and restarted under load: no answer is lost, and none differs.

Each disturbance comes when the disturbed process itself says that it is in the middle of its work. What the client has
read by then says nothing: on a busy machine the client is seconds behind.
"""

import asyncio
import signal
from collections.abc import Callable, Sequence

import numpy
import openai
import pytest

from fsr.client import Answer, AsyncClient
from helpers.chat import messages
from helpers.processes import encoder_replica
from helpers.waiting import until, wait_until_generating

pytestmark = pytest.mark.timeout(1800)  # starting processes takes long on a busy machine
QUESTION = "What colour is the star?"
STREAMS, TOKENS = 24, 300


class Cluster:
    """A gateway in front of three decoders, another one that may die, and the load on them."""

    def __init__(self, gateway, other_gateway, base_url, decoders, pictures):
        self.gateway, self.other_gateway, self.base_url = gateway, other_gateway, base_url
        self.decoders, self.pictures = decoders, pictures

    async def ask(self, client: AsyncClient, number: int) -> Answer:
        """Request number `number`: every other one is sampled."""
        picture, sampling = self._picture_and_sampling(number)
        return await client.ask(
            picture, QUESTION, budget=16 + number, max_tokens=TOKENS, ignore_eos=True, timeout=600, **sampling
        )

    async def ask_by_http(self, client: openai.AsyncOpenAI, number: int) -> tuple[str, openai.types.CompletionUsage]:
        """The same request as a stream of OpenAI's API: its text, and its figures."""
        picture, sampling = self._picture_and_sampling(number)
        stream = await client.chat.completions.create(
            model="",
            messages=messages(QUESTION, picture),
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "fsr": {"budget": 16 + number, "timeout": 600}},
            **sampling,
        )
        *chunks, last = [chunk async for chunk in stream]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), last.usage

    def _picture_and_sampling(self, number: int) -> tuple[bytes, dict]:
        sampling = {"temperature": 1.5, "top_p": 0.95, "seed": number} if number % 2 else {}
        return self.pictures[number % len(self.pictures)], sampling

    async def answers(
        self, count: int, disturb: Callable[[], None] = lambda: None, addresses: Sequence[str] = ()
    ) -> list[Answer]:
        """`count` answers at a time; `disturb` runs beside them, in a thread of its own."""
        addresses = addresses or [self.gateway.address]
        async with AsyncClient(addresses, replicas=True) as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.ask(client, number)) for number in range(count)]
            await asyncio.to_thread(disturb)
        return [task.result() for task in tasks]

    async def until_all_serve(self) -> None:
        """Until every decoder has answered a request, so that the gateway's circuit breakers are closed."""
        for decoder in self.decoders:
            await asyncio.to_thread(decoder.wait_until_serving)
        missing = {decoder.address for decoder in self.decoders}
        async with AsyncClient(self.gateway.address, replicas=True) as client, asyncio.timeout(180):
            while missing:
                missing.discard((await client.ask([], "Hello", max_tokens=1)).route.decoders[-1])
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(system, spawn, served_model, pictures, free_ports):
    decoders = [spawn("decoder", *served_model) for _ in range(3)]
    addresses = ",".join(decoder.address for decoder in decoders)
    flags = ("--encoders", system["encoder"], "--decoders", addresses, "--max-requests", "128")
    # Only pings find out in time that a decoder is frozen: all other patience is longer. An encoder replica that was
    # killed is back once a new process has loaded torch, which takes a busy machine most of a minute.
    patience = ("--discovery-seconds", "0.3", "--probe-timeout-seconds", "60", "--keepalive-seconds", "2")
    patience += ("--stall-seconds", "600", "--first-token-seconds", "600", "--encode-seconds", "300")
    patience += ("--failover-wait-seconds", "300")
    gateway = spawn("gateway", *flags, *patience, "--http-port", str(http_port := free_ports()))
    other_gateway = spawn("gateway", *flags, *patience)
    for service in (*decoders, gateway, other_gateway):
        service.wait_until_serving()
    return Cluster(gateway, other_gateway, f"http://127.0.0.1:{http_port}/v1", decoders, pictures(200, 8))


def contents(answers: list[Answer]) -> list[tuple]:
    return [(a.text, a.token_ids, a.finish_reason, a.usage.completion_tokens, a.usage.prompt_tokens) for a in answers]


@pytest.fixture(scope="module")
def undisturbed(cluster):
    async def run():
        await cluster.until_all_serve()
        return await cluster.answers(STREAMS)

    answers = asyncio.run(run())
    assert all(len(answer.token_ids) == TOKENS and answer.usage.failovers == 0 for answer in answers)
    return contents(answers)


@pytest.mark.parametrize("time", ["the first", pytest.param("the second", marks=pytest.mark.cluster)])
async def test_answers_when_their_decoder_is_killed_go_on_elsewhere(cluster, undisturbed, time):
    """kill -9 under many streams. A decoder that has come back is no different from one that never went."""
    victim = cluster.decoders[0]

    def kill():
        victim.wait_until_generating(answers=4, tokens=40)  # of at least 4 * 300
        victim.end(signal.SIGKILL)

    try:
        answers = await cluster.answers(STREAMS, kill)
    finally:
        victim.start()
    assert contents(answers) == undisturbed
    moved = [answer for answer in answers if answer.usage.failovers]
    assert len(moved) >= 3
    for answer in moved:
        assert victim.address in answer.route.decoders[:-1] and len(answer.route.decoders) > 1
    await cluster.until_all_serve()


async def test_http_streams_when_their_decoder_is_killed_go_on_elsewhere(cluster, undisturbed):
    victim = cluster.decoders[1]

    def kill():
        victim.wait_until_generating(answers=3, tokens=30)  # of at least 3 * 300
        victim.end(signal.SIGKILL)

    options = {"base_url": cluster.base_url, "api_key": "none", "max_retries": 0, "timeout": 600}
    try:
        async with openai.AsyncOpenAI(**options) as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(cluster.ask_by_http(client, number)) for number in range(20)]
            await asyncio.to_thread(kill)
    finally:
        victim.start()
    texts, usages = zip(*(task.result() for task in tasks), strict=True)
    assert list(texts) == [text for text, *_ in undisturbed[:20]]
    assert all(usage.completion_tokens == TOKENS for usage in usages)
    assert sum(usage.model_extra["fsr"]["failovers"] > 0 for usage in usages) >= 2
    await cluster.until_all_serve()


async def test_answers_when_their_gateway_is_killed_go_on_at_another_one(cluster, undisturbed):
    victim = cluster.other_gateway

    def kill():
        wait_until_generating(cluster.decoders, answers=12, tokens=120)  # of at least 12 * 300
        victim.end(signal.SIGKILL)

    answers = await cluster.answers(STREAMS, kill, [victim.address, cluster.gateway.address])
    assert contents(answers) == undisturbed
    assert sum(answer.resumed for answer in answers) >= 12 and victim.end() != 0


async def test_requests_after_a_decoder_has_died_go_elsewhere(cluster, undisturbed):
    """They come before the gateway has noticed."""
    victim = cluster.decoders[1]
    victim.end(signal.SIGKILL)
    try:
        assert contents(await cluster.answers(8)) == undisturbed[:8]
    finally:
        victim.start()
    await cluster.until_all_serve()


async def test_answers_when_their_decoder_freezes_go_on_elsewhere(cluster, undisturbed):
    victim = cluster.decoders[2]

    def freeze():
        victim.wait_until_generating(answers=3, tokens=30)  # of at least 3 * 300
        victim.send(signal.SIGSTOP)

    try:
        answers = await cluster.answers(18, freeze)
    finally:
        victim.send(signal.SIGCONT)
    assert contents(answers) == undisturbed[:18]
    assert any(victim.address in answer.route.decoders[:-1] for answer in answers)
    await cluster.until_all_serve()


async def test_requests_when_a_decoder_is_frozen_already_go_elsewhere(cluster, undisturbed):
    """They come before the gateway has noticed: after two seconds without an answer it sends a ping.

    On a machine so busy that they come later, the gateway does not choose the frozen decoder any more: then once more.
    """
    victim = cluster.decoders[1]
    for _ in range(5):
        victim.send(signal.SIGSTOP)
        try:
            answers = await cluster.answers(12)
        finally:
            victim.send(signal.SIGCONT)
        assert contents(answers) == undisturbed[:12]
        await cluster.until_all_serve()
        if any(victim.address in answer.route.decoders[:-1] for answer in answers):
            return
    raise AssertionError("the frozen decoder was never chosen")


@pytest.mark.cluster
async def test_requests_during_a_rolling_restart_all_succeed(cluster, undisturbed):
    done, over = [], False

    async def worker(client, number):
        while not over:
            done.append(((await cluster.ask(client, number)).text, number))
            await asyncio.sleep(1)  # the processes that start need the machine too

    async with AsyncClient(cluster.gateway.address, replicas=True) as client, asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(worker(client, number))  # raises if a request fails
        for decoder in cluster.decoders:
            await asyncio.to_thread(decoder.wait_until_generating, answers=1)
            assert await asyncio.to_thread(decoder.end, signal.SIGTERM) == 0
            decoder.start()
            await cluster.until_all_serve()
            await asyncio.to_thread(decoder.wait_until_generating, answers=1)
        over = True
    assert len(done) >= len(cluster.decoders)
    assert all(text == undisturbed[number][0] for text, number in done)


async def test_an_encoder_replica_killed_in_mid_batch_costs_no_answer(system, cluster, pictures):
    victim = encoder_replica(system["encoder"].rpartition(":")[2])
    some = pictures(300, 16, large=True)

    def worked() -> float:
        """Seconds of CPU."""
        times = victim.cpu_times()
        return times.user + times.system

    before = worked()

    def kill():
        until(lambda: worked() >= before + 0.2)  # it is at it, and far from done
        victim.kill()

    async with AsyncClient(cluster.gateway.address, replicas=True) as client:
        options = {"budget": 16, "timeout": 600}
        calls = [asyncio.create_task(client.compress(picture, QUESTION, **options)) for picture in some]
        await asyncio.to_thread(kill)
        compressed = await asyncio.gather(*calls)
        assert any(len(answer.route.encoders) > 1 for answer in compressed)
        again = [await client.compress(picture, QUESTION, **options) for picture in some]
    for one, other in zip(compressed, again, strict=True):
        (image,), (expected,) = one.images, other.images
        assert image.index == expected.index
        # Alone or in a batch: the vision tower's sums differ in their last bits.
        numpy.testing.assert_allclose(image.features, expected.features, rtol=1e-3, atol=1e-4)
