"""The quality canary of a real gateway, with a decoder of its own that runs one answer at a time."""

import asyncio
import signal
from collections import Counter

import pytest

from fsr.client import AsyncClient

QUESTION = "What colour is the star?"
LONG = {
    "max_tokens": 2_000,
    "ignore_eos": True,
    "timeout": 600,
}  # so that its canary still runs when something happens to it
OUTCOMES = ("busy", "shed", "failed")


@pytest.fixture(scope="module")
def model(same_model, long_context):
    return (*same_model, "--served-name", long_context.name)


@pytest.fixture(scope="module")
def decoder(spawn, model):
    return spawn("decoder", *model, "--max-running", "1")


@pytest.fixture(scope="module")
def gateway(system, spawn, decoder):
    """Every answer has a canary, unless there is anything else to do."""
    options = ("--canary-share", "1", "--canary-max-requests", "0", "--discovery-seconds", "0.3")
    options += ("--canary-timeout-seconds", "600")
    gateway = spawn("gateway", "--encoders", system["encoder"], "--decoders", decoder.address, *options)
    decoder.wait_until_serving()
    gateway.wait_until_serving()
    return gateway


@pytest.fixture
async def client(gateway):
    async with AsyncClient(gateway.address) as client, asyncio.timeout(600):
        yield client


def outcomes(gateway):
    """How often each has come so far."""
    told = Counter({reason: gateway.metric("fsr_canary_skipped_total", reason=reason) for reason in OUTCOMES})
    told["compared"] = gateway.metric("fsr_canary_answers_total")
    return told


async def until(condition):
    async with asyncio.timeout(180):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def caught(client, gateway, decoder, picture):
    """A caller's whole answer, while the canary that it led to is still being decoded; the outcomes so far.

    A machine that stands still for the length of a canary makes us miss it: then another is waited for.
    """
    for _ in range(5):
        before = outcomes(gateway)
        answer = await client.ask(picture, QUESTION, budget=4, **LONG)
        assert len(answer.token_ids) == LONG["max_tokens"]
        await until(lambda was=before: decoder.metric("fsr_decoder_running_requests") == 1 or outcomes(gateway) != was)
        if outcomes(gateway) == before:
            return before
        assert outcomes(gateway) - before == {"compared": 1}, "given up for nothing"
    raise AssertionError("no canary was seen while it ran")


async def test_it_is_given_up_for_the_next_caller(gateway, decoder, client, png):
    before = await caught(client, gateway, decoder, png(1))
    codes = ("OK", "CANCELLED")
    ended = Counter({code: decoder.metric("fsr_decoder_requests_total", code=code) for code in codes})
    # The decoder has one place: this caller gets the one that the canary has.
    answer = await client.ask(png(2), QUESTION, budget=16, temperature=1.0, max_tokens=5, ignore_eos=True)
    assert len(answer.token_ids) == 5 and answer.route.decoders == (decoder.address,) and not answer.usage.retries
    assert outcomes(gateway) - before == {"shed": 1}
    since = Counter({code: decoder.metric("fsr_decoder_requests_total", code=code) for code in codes}) - ended
    assert since == {"OK": 1, "CANCELLED": 1}, "the canary came first"


async def test_its_own_call_is_no_reason_to_give_it_up(system, spawn, model, png):
    alone = spawn("decoder", *model)
    # Asked all the time how it is, the decoder also tells so while it takes the canary's request in.
    options = ("--canary-share", "1", "--canary-max-requests", "0", "--discovery-seconds", "0.01")
    gateway = spawn("gateway", "--encoders", system["encoder"], "--decoders", alone.address, *options)
    alone.wait_until_serving()
    gateway.wait_until_serving()
    async with AsyncClient(gateway.address) as client, asyncio.timeout(600):
        for number in range(1, 21):
            await client.ask(png(number), QUESTION, budget=4)
            await until(lambda n=number: outcomes(gateway).total() == n)
    assert outcomes(gateway)["compared"] == 20


async def test_calls_of_another_gateway_keep_it_from_running(system, spawn, model, png):
    both = spawn("decoder", *model, "--max-running", "8")
    options = ("--canary-share", "1", "--canary-max-requests", "1", "--discovery-seconds", "0.3")
    one = spawn("gateway", "--encoders", system["encoder"], "--decoders", both.address, *options)
    other = spawn("gateway", "--encoders", system["encoder"], "--decoders", both.address)
    for service in (both, one, other):
        service.wait_until_serving()
    async with AsyncClient(one.address) as ours, AsyncClient(other.address) as theirs, asyncio.timeout(600):
        endless = LONG | {"max_tokens": 8_000}
        busy = [asyncio.create_task(theirs.ask(png(3), QUESTION, budget=4, **endless)) for _ in range(4)]
        await until(lambda: both.metric("fsr_decoder_running_requests") == 4)
        before = outcomes(one)
        await ours.ask(png(1), QUESTION, budget=4)
        await until(lambda: outcomes(one) != before)
        assert outcomes(one) - before == {"busy": 1}
        for task in busy:
            task.cancel()
        await asyncio.wait(busy)


async def test_one_whose_decoder_dies_has_failed_and_the_next_is_compared(gateway, decoder, client, png):
    before = await caught(client, gateway, decoder, png(1))
    decoder.end(signal.SIGKILL)
    await until(lambda: outcomes(gateway) != before)
    assert outcomes(gateway) - before == {"failed": 1}
    told = [gateway.metric(f"fsr_{name}_total") for name in ("failovers", "retries")]
    assert told == [0, 0], "no caller's request was touched"
    decoder.start()
    await asyncio.to_thread(decoder.wait_until_serving)
    await asyncio.to_thread(gateway.wait_until_serving)
    await client.ask(png(1), QUESTION, budget=4)
    await until(lambda: outcomes(gateway) - before == {"failed": 1, "compared": 1})


async def test_an_answer_that_differs_lowers_the_agreement(gateway, client, png):
    async def differs(seed):
        few, whole = [(await client.ask(png(seed), QUESTION, budget=n)).token_ids for n in (4, 144)]
        return few != whole, max(len(few), len(whole)), sum(a == b for a, b in zip(few, whole, strict=False))

    def counted():
        names = ("answers", "exact", "tokens", "tokens_agreed")
        return [gateway.metric(f"fsr_canary_{name}_total", method="fsr", budget="0.05") for name in names]

    seen = {}
    for seed in range(20):
        done = outcomes(gateway).total()
        kind, *tokens = await differs(seed)
        seen.setdefault(kind, (seed, *tokens))
        await until(lambda n=done + 1: outcomes(gateway).total() == n)  # an answer from all tokens has no canary
        if len(seen) == 2:
            break
    (equal, size, _), (other, longer, agreed) = seen[False], seen[True]
    assert agreed < longer
    for seed, added in ((equal, [1, 1, size, size]), (other, [1, 0, longer, agreed])):
        before, done = counted(), outcomes(gateway).total()
        await client.ask(png(seed), QUESTION, budget=4)
        await until(lambda n=done + 1: outcomes(gateway).total() == n)
        assert [now - then for now, then in zip(counted(), before, strict=True)] == added
