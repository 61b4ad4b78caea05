"""Real processes are killed, frozen and restarted under load: no answer is lost, and none differs."""

import asyncio
import io
import signal
from collections.abc import Callable

import numpy
import psutil
import pytest
from PIL import Image

from fsr.client import Answer, AsyncClient

pytestmark = pytest.mark.timeout(900)  # starting processes takes what a busy machine makes of it
QUESTION = "What colour is the star?"
TOKENS = 150


class Cluster:
    """A gateway in front of three decoders, and the load on it."""

    def __init__(self, gateway, decoders, pictures):
        self.gateway, self.decoders, self.pictures = gateway, decoders, pictures

    def ask(self, client: AsyncClient, number: int):
        """Request number `number`: every other one sampled, all of them long enough to be cut in the middle."""
        sampled = {"temperature": 1.5, "top_p": 0.95, "seed": number} if number % 2 else {}
        picture = self.pictures[number % len(self.pictures)]
        return client.stream(
            picture, QUESTION, budget=16 + number, max_tokens=TOKENS, ignore_eos=True, timeout=120, **sampled
        )

    async def answers(
        self, count: int, disturb: Callable[[], None] | None = None, after: int = TOKENS // 4
    ) -> list[Answer]:
        """`count` answers at a time; `disturb` happens once the streams have `after` tokens each in the mean."""
        seen = [0] * count

        async def one(client, number):
            chunks = []
            async for chunk in self.ask(client, number):
                chunks.append(chunk)
                seen[number] += len(chunk.token_ids)
            last = chunks[-1]
            ids = tuple(i for chunk in chunks for i in chunk.token_ids)
            text = "".join(chunk.text for chunk in chunks)
            return Answer(
                text=text,
                token_ids=ids,
                logprobs=(),
                finish_reason=last.finish_reason,
                usage=last.usage,
                route=last.route,
            )

        async with AsyncClient(self.gateway.address) as client:
            tasks = [asyncio.create_task(one(client, number)) for number in range(count)]
            if disturb is not None:
                while sum(seen) < count * after and not any(task.done() for task in tasks):
                    await asyncio.sleep(0.01)
                disturb()
            return await asyncio.gather(*tasks)

    async def until_all_serve(self) -> None:
        for decoder in self.decoders:
            await asyncio.to_thread(decoder.wait_until_serving)
        async with AsyncClient(self.gateway.address) as client, asyncio.timeout(180):
            while (await client.models())[0].decoders < len(self.decoders):
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(system, spawn, pictures):
    decoders = [spawn("decoder") for _ in range(3)]
    addresses = ",".join(decoder.address for decoder in decoders)
    flags = ("--encoders", system["encoder"], "--decoders", addresses, "--max-requests", "128")
    # Nobody waits for a first token longer than for an answer: pings must tell that a decoder hangs.
    patience = ("--discovery-seconds", "0.3", "--keepalive-seconds", "2", "--stall-seconds", "4")
    patience += ("--first-token-seconds", "600")
    gateway = spawn("gateway", *flags, *patience)
    for service in (*decoders, gateway):
        service.wait_until_serving()
    return Cluster(gateway, decoders, pictures(200, 8))


def said(answers: list[Answer]) -> list[tuple]:
    return [(a.text, a.token_ids, a.finish_reason, a.usage.completion_tokens, a.usage.prompt_tokens) for a in answers]


@pytest.fixture(scope="module")
def undisturbed(cluster):
    async def run():
        await cluster.until_all_serve()
        return await cluster.answers(50)

    answers = asyncio.run(run())
    assert all(len(answer.token_ids) == TOKENS and answer.usage.failovers == 0 for answer in answers)
    return said(answers)


async def test_killed_decoders_cost_no_answer(cluster, undisturbed):
    """kill -9 under 50 streams, three times over."""
    for victim in cluster.decoders:
        try:
            answers = await cluster.answers(50, lambda victim=victim: victim.end(signal.SIGKILL))
        finally:
            victim.start()
        assert said(answers) == undisturbed
        moved = [answer for answer in answers if answer.usage.failovers]
        assert len(moved) >= 3
        for answer in moved:
            assert victim.address in answer.route.decoders[:-1] and len(answer.route.decoders) > 1
    await cluster.until_all_serve()


@pytest.mark.parametrize(("number", "after"), [(0, TOKENS // 4), (1, 0)], ids=["in the middle", "before they begin"])
async def test_a_frozen_decoder_is_worked_around(cluster, undisturbed, number, after):
    victim = cluster.decoders[number]  # each time one that is not on trial yet
    try:
        answers = await cluster.answers(24, lambda: victim.send(signal.SIGSTOP), after)
    finally:
        victim.send(signal.SIGCONT)
    assert said(answers) == undisturbed[:24]
    assert any(victim.address in answer.route.decoders[:-1] for answer in answers)
    await cluster.until_all_serve()


async def test_a_rolling_restart_fails_no_request(cluster, undisturbed):
    done, over = [], False

    async def worker(client, number):
        while not over:
            chunks = [chunk async for chunk in cluster.ask(client, number)]
            done.append(("".join(chunk.text for chunk in chunks), number))
            await asyncio.sleep(0.3)  # the processes that start need the machine too

    async with AsyncClient(cluster.gateway.address) as client:
        workers = [asyncio.create_task(worker(client, number)) for number in range(4)]
        for decoder in cluster.decoders:
            assert await asyncio.to_thread(decoder.end, signal.SIGTERM, 60) == 0
            decoder.start()
            await cluster.until_all_serve()
        over = True
        await asyncio.gather(*workers)  # raises if any request failed
    assert len(done) > 6
    assert all(text == undisturbed[number][0] for text, number in done)


def encoder_replica(port: str) -> psutil.Process:
    """Ray's worker that holds the model of the encoder at this port."""
    mains = [p for p in psutil.process_iter() if {"fsr.encoder", port} <= set(cmdline(p))]
    family = [child for main in mains for child in main.children(recursive=True)]
    (replica,) = (p for p in family if "ServeReplica:encoder:Encoder" in " ".join(cmdline(p)))
    return replica


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def large(picture: bytes) -> bytes:
    """The same with 3 million pixels, which take a while to prepare."""
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((1728, 1728)).save(out, "JPEG")
    return out.getvalue()


async def test_an_encoder_replica_killed_in_mid_batch_costs_no_answer(system, cluster, pictures):
    victim = encoder_replica(system["encoder"].rpartition(":")[2])
    some = [large(picture) for picture in pictures(300, 16)]

    def worked() -> float:
        times = victim.cpu_times()
        return times.user + times.system

    async with AsyncClient(cluster.gateway.address) as client:
        before = worked()
        calls = [asyncio.create_task(client.compress(picture, QUESTION, budget=16, timeout=120)) for picture in some]
        while worked() < before + 0.2:  # seconds: it is at it, and far from done
            await asyncio.sleep(0.005)
        victim.kill()
        told = await asyncio.gather(*calls)
        assert any(len(answer.route.encoders) > 1 for answer in told)
        again = [await client.compress(picture, QUESTION, budget=16, timeout=120) for picture in some]
    for one, other in zip(told, again, strict=True):
        (kept,), (wanted,) = one.images, other.images
        assert kept.index == wanted.index
        # Alone or in a batch: the vision tower's sums differ in their last bits.
        numpy.testing.assert_allclose(
            numpy.frombuffer(kept.features, "<f4"), numpy.frombuffer(wanted.features, "<f4"), rtol=1e-3, atol=1e-4
        )
