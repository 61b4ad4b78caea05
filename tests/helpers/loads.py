"""Loads on a running system while a Prometheus watches it."""

import asyncio
import itertools
import signal
import time
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event, Thread

from fsr.client import Answer, AsyncClient, ClientError, OverloadedError
from helpers.waiting import until

QUESTION, COLOUR, MODEL, OTHER = "Is there a red star?", "What colour is the star?", "fsr-tiny", "another-tiny"
LONG = {"max_tokens": 100, "ignore_eos": True}  # so that requests sent at once also run at once, on any machine
# The load with known figures: method, budget and number of requests.
LOAD = (("fsr", 16, 12), ("cdpruner", 32, 6), ("fsr", 4, 4))


async def ask(address, picture, choices, **options):
    """Sends one request for each (method, budget), all at once. Returns the answers and the number of refusals."""
    async with AsyncClient(address) as client:
        calls = (
            client.ask(picture(i % 4), QUESTION, budget=budget, method=method, model=MODEL, **options)
            for i, (method, budget) in enumerate(choices)
        )
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, (Answer, OverloadedError)) for one in results), results
    answers = [one for one in results if isinstance(one, Answer)]
    return answers, len(results) - len(answers)


def figures(load):
    """The increase of some sums that a load causes: query -> increase."""
    kept = {method: sum(b * n for m, b, n in load if m == method) for method in ("fsr", "cdpruner")}
    images = {method: sum(n for m, _, n in load if m == method) for method in ("fsr", "cdpruner")}
    return {
        'fsr_requests_total{interface="grpc", rpc="Generate", code="OK"}': sum(images.values()),
        'fsr_visual_tokens_in_total{method="fsr"}': 144 * images["fsr"],
        'fsr_visual_tokens_kept_total{method="fsr"}': kept["fsr"],
        'fsr_visual_tokens_kept_total{method="cdpruner"}': kept["cdpruner"],
        'ray_fsr_encoder_visual_tokens_kept_total{method="fsr"}': kept["fsr"],
        'ray_fsr_encoder_visual_tokens_in_total{method="cdpruner"}': 144 * images["cdpruner"],
        "ray_fsr_encoder_images_total": sum(images.values()),
    }


async def compare(plain, gateway, picture):
    """Asks questions through the canary's gateway, one at a time. Returns the expected counts and the canary's."""
    expected = {"answers": 0, "exact": 0, "tokens": 0, "tokens_agreed": 0}
    async with AsyncClient(plain) as client, AsyncClient(gateway.address) as canary, asyncio.timeout(600):
        for seed in range(10, 18):
            few, whole = [(await client.ask(picture(seed), COLOUR, budget=n)).token_ids for n in (4, 144)]
            expected["answers"] += 1
            expected["exact"] += few == whole
            expected["tokens"] += max(len(few), len(whole))
            expected["tokens_agreed"] += sum(a == b for a, b in zip(few, whole, strict=False))
            assert (await canary.ask(picture(seed), COLOUR, budget=4, model=MODEL)).token_ids == few
            while gateway.metric("fsr_canary_answers_total") < expected["answers"]:
                await asyncio.sleep(0.05)
        await canary.ask(picture(1), COLOUR, budget=144, model=MODEL)  # no compression, no canary
        await canary.ask(picture(1), COLOUR, budget=4, temperature=1.0, model=MODEL)  # sampled, no canary
    return expected, {name: gateway.metric(f"fsr_canary_{name}_total") for name in expected}


async def kill_a_busy_decoder(gateway, victim, picture):
    """`kill -9` on `victim` while it generates long answers. Returns the usage of all answers.

    The decoder's own figures say when to kill it: a client may read so late that an answer has already ended.
    """
    length, bytes_a_token = 400, 4 * 2 * 160 * 4  # layers, keys and values, width, fp32
    options = {"model": MODEL, "budget": 16, "max_tokens": length, "ignore_eos": True, "timeout": 600}

    def kill():
        # Other callers' requests together reserve less than two of these.
        until(lambda: victim.metric("fsr_decoder_kv_reserved_bytes") >= 2 * length * bytes_a_token)
        victim.wait_until_generating(answers=2, tokens=20)
        victim.end(signal.SIGKILL)

    async with AsyncClient(gateway.address) as client:
        calls = [client.ask(picture(number), COLOUR, **options) for number in range(6)]
        answers, _ = await asyncio.gather(asyncio.gather(*calls), asyncio.to_thread(kill))
    assert [len(answer.token_ids) for answer in answers] == [length] * len(answers)
    return [answer.usage for answer in answers]


@dataclass(kw_only=True)
class MixedLoad:
    """Callers that send mixed requests through two gateways until the block ends. The second gateway has the canary.

    `usages` are those of the second gateway's answers. `refused` counts the refusals of both gateways.
    """

    addresses: tuple[str, str]
    picture: object
    usages: list = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    _over: Event = field(default_factory=Event)

    def __enter__(self):
        self._thread = Thread(target=lambda: asyncio.run(self._all()))
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()

    async def _all(self):
        first, second = self.addresses
        async with AsyncClient(first) as plain, AsyncClient(second) as canary:
            callers = [self._caller(plain, number) for number in range(3)]
            await asyncio.gather(*callers, self._caller(canary, 3), self._text(canary))

    async def _caller(self, client, number):
        kinds = itertools.cycle((("fsr", 16), ("cdpruner", 16), ("fsr", 48), ("fsr", 4), ("cdpruner", 48)))
        for turn in itertools.count(number * 17):
            if self._over.is_set():
                return
            method, budget = next(kinds)
            long = {"max_tokens": 60, "ignore_eos": True} if number < 3 else {}
            options = {"model": MODEL, "method": method, "budget": budget, **long}
            await self._one(client, number, self.picture(turn % 64), COLOUR, options)
            await asyncio.sleep(0.1 + 0.2 * number)

    async def _text(self, client):
        while not self._over.is_set():
            await self._one(client, 3, [], "Hello", {"model": OTHER, "max_tokens": 30, "ignore_eos": True})
            await asyncio.sleep(0.5)

    async def _one(self, client, number, images, question, options):
        try:
            usage = (await client.ask(images, question, **options)).usage
            if number == 3:
                self.usages.append(usage)
        except OverloadedError:
            self.refused += 1
        except ClientError as error:
            self.errors.append(str(error))


def settled(server, expected, before, seconds=300):
    """Waits until every sum has increased as expected, at most `seconds`. Returns the increases."""
    end = time.monotonic() + seconds
    while True:
        now = {query: total(server, query) - before[query] for query in expected}
        if now == expected or time.monotonic() > end:
            return now
        time.sleep(0.5)


def wait_until_steady(server, queries, seconds=5):
    """Waits until the sums have not changed for so long. A figure takes about two seconds to Prometheus."""
    last, since = None, time.monotonic()
    while time.monotonic() < since + seconds:
        now = [total(server, query) for query in queries]
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.2)


def wait_until_scraped(server):
    """Waits until Prometheus has scraped every service anew, and after that has evaluated every rule anew."""
    began = time.time()
    until(lambda: all(one.points[-1][1] > began for one in server.instant("timestamp(up)")))
    scraped = time.time()

    def evaluated(group):
        return datetime.fromisoformat(group["lastEvaluation"]).timestamp() > scraped

    until(lambda: all(evaluated(group) for group in server.get("rules")["groups"]))


def total(server, query):
    """The sum of a query's series now."""
    return sum(series.points[-1][1] for series in server.instant(query))
