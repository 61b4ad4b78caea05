"""The quality canary of a real gateway. Its decoder runs one answer at a time."""

import asyncio
import signal
from collections import Counter

import pytest

from fsr.client import AsyncClient

QUESTION = "What colour is the star?"
LONG = {"max_tokens": 1_000, "ignore_eos": True, "timeout": 600}  # so that the test can act while the canary runs
OUTCOMES = ("busy", "shed", "failed")


@pytest.fixture(scope="module")
def decoder(spawn, served_model):
    return spawn("decoder", *served_model, "--max-running", "1")


@pytest.fixture(scope="module")
def roomy_decoder(spawn, served_model):
    """It runs several answers at a time."""
    return spawn("decoder", *served_model, "--max-running", "8")


@pytest.fixture(scope="module")
def gateway(system, spawn, decoder):
    """A gateway that sends a canary after every answer, if it has no other request."""
    options = ("--canary-share", "1", "--canary-max-requests", "0", "--discovery-seconds", "0.3")
    options += ("--canary-timeout-seconds", "600")
    gateway = spawn("gateway", "--encoders", system["encoder"], "--decoders", decoder.address, *options)
    decoder.wait_until_serving()
    gateway.wait_until_serving()
    return gateway


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.address, replicas=True) as client, asyncio.timeout(600):
        yield client


def outcomes(gateway):
    """How often each outcome of a canary has occurred so far."""
    counts = Counter({reason: gateway.metric("fsr_canary_skipped_total", reason=reason) for reason in OUTCOMES})
    counts["compared"] = gateway.metric("fsr_canary_answers_total")
    return counts


async def until(condition):
    async with asyncio.timeout(180):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def catch_running_canary(client, gateway, decoder, picture):
    """Asks a question and returns while the answer's canary is being decoded. Returns the outcomes so far.

    If the machine pauses for the length of a canary, the test misses it and waits for the next one.
    """
    for _ in range(5):
        before = outcomes(gateway)
        answer = await client.ask(picture, QUESTION, budget=4, **LONG)
        assert len(answer.token_ids) == LONG["max_tokens"]
        await until(lambda was=before: decoder.metric("fsr_decoder_running_requests") == 1 or outcomes(gateway) != was)
        if outcomes(gateway) == before:
            return before
        assert outcomes(gateway) - before == {"compared": 1}, "a canary was stopped without a reason"
    raise AssertionError("every canary ended before the test saw it run")


async def test_canary_when_a_caller_needs_its_slot_is_shed(gateway, decoder, client, png):
    before = await catch_running_canary(client, gateway, decoder, png(1))
    codes = ("OK", "CANCELLED")
    earlier = Counter({code: decoder.metric("fsr_decoder_requests_total", code=code) for code in codes})
    # The decoder has one slot, and the canary holds it. This caller gets the slot.
    answer = await client.ask(png(2), QUESTION, budget=16, temperature=1.0, max_tokens=5, ignore_eos=True)
    assert len(answer.token_ids) == 5 and answer.route.decoders == (decoder.address,) and not answer.usage.retries
    assert outcomes(gateway) - before == {"shed": 1}
    since = Counter({code: decoder.metric("fsr_decoder_requests_total", code=code) for code in codes}) - earlier
    assert since == {"OK": 1, "CANCELLED": 1}, "the caller waited for the canary"


async def test_canary_when_the_decoder_reports_its_own_call_goes_on(system, spawn, roomy_decoder, png):
    # The gateway asks for the decoder's load so often that a report also comes while the canary's request arrives.
    options = ("--canary-share", "1", "--canary-max-requests", "0", "--discovery-seconds", "0.01")
    gateway = spawn("gateway", "--encoders", system["encoder"], "--decoders", roomy_decoder.address, *options)
    roomy_decoder.wait_until_serving()
    gateway.wait_until_serving()
    async with AsyncClient(gateway.address) as client, asyncio.timeout(600):
        for number in range(1, 13):
            await client.ask(png(number), QUESTION, budget=4)
            await until(lambda n=number: outcomes(gateway).total() == n)
    assert outcomes(gateway)["compared"] == 12
    gateway.end()  # it asks the decoder a hundred times a second


async def test_canary_when_another_gateway_keeps_the_decoder_busy_is_skipped(system, spawn, roomy_decoder, png):
    decoder = roomy_decoder
    options = ("--canary-share", "1", "--canary-max-requests", "1", "--discovery-seconds", "0.3")
    one = spawn("gateway", "--encoders", system["encoder"], "--decoders", decoder.address, *options)
    other = spawn("gateway", "--encoders", system["encoder"], "--decoders", decoder.address)
    for service in (decoder, one, other):
        service.wait_until_serving()
    async with AsyncClient(one.address) as client, AsyncClient(other.address) as other_client, asyncio.timeout(600):
        endless = LONG | {"max_tokens": 8_000}
        busy = [asyncio.create_task(other_client.ask(png(3), QUESTION, budget=4, **endless)) for _ in range(4)]
        await until(lambda: decoder.metric("fsr_decoder_running_requests") == 4)
        before = outcomes(one)
        await client.ask(png(1), QUESTION, budget=4)
        await until(lambda: outcomes(one) != before)
        assert outcomes(one) - before == {"busy": 1}
        for task in busy:
            task.cancel()
        await asyncio.wait(busy)


async def test_canary_when_its_decoder_dies_fails_and_the_next_is_compared(gateway, decoder, client, png):
    before = await catch_running_canary(client, gateway, decoder, png(1))
    decoder.end(signal.SIGKILL)
    await until(lambda: outcomes(gateway) != before)
    assert outcomes(gateway) - before == {"failed": 1}
    moves = [gateway.metric(f"fsr_{name}_total") for name in ("failovers", "retries")]
    assert moves == [0, 0], "a caller's request was moved"
    decoder.start()
    await asyncio.to_thread(decoder.wait_until_serving)
    await asyncio.to_thread(gateway.wait_until_serving)
    await client.ask(png(1), QUESTION, budget=4)
    await until(lambda: outcomes(gateway) - before == {"failed": 1, "compared": 1})


async def test_canary_when_the_answer_differs_lowers_the_agreement(gateway, client, png):
    async def compare(seed):
        few, whole = [(await client.ask(png(seed), QUESTION, budget=n)).token_ids for n in (4, 144)]
        return few != whole, max(len(few), len(whole)), sum(a == b for a, b in zip(few, whole, strict=False))

    def counters():
        names = ("answers", "exact", "tokens", "tokens_agreed")
        return [gateway.metric(f"fsr_canary_{name}_total", method="fsr", budget="0.05") for name in names]

    examples = {}  # whether the two answers differ -> seed, tokens of the longer one, tokens that agree
    for seed in range(20):
        done = outcomes(gateway).total()
        differs, *tokens = await compare(seed)
        examples.setdefault(differs, (seed, *tokens))
        await until(lambda n=done + 1: outcomes(gateway).total() == n)  # an answer from all tokens has no canary
        if len(examples) == 2:
            break
    (equal, size, _), (other, longer, agreed) = examples[False], examples[True]
    assert agreed < longer
    for seed, added in ((equal, [1, 1, size, size]), (other, [1, 0, longer, agreed])):
        before, done = counters(), outcomes(gateway).total()
        await client.ask(png(seed), QUESTION, budget=4)
        await until(lambda n=done + 1: outcomes(gateway).total() == n)
        assert [now - then for now, then in zip(counters(), before, strict=True)] == added
