"""Puts load on a gateway through its public API.

Closed loop: a fixed number of clients, each of which asks again as soon as it has its answer. Open loop: requests
arrive at a mean rate as a Poisson process, whether or not earlier ones are answered. Their latency counts from the
time they were due, so that a server that stalls cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

from fsr.cli.fresh import Fresh
from fsr.client.aio import AsyncClient
from fsr.client.errors import (
    AuthenticationError,
    ClientError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
)
from fsr.client.requests import GenerateOptions
from fsr.client.types import Usage

__all__ = ["Outcome", "Plan", "drive"]

_PAUSE_SECONDS = 0.1  # a client of a closed loop waits so long after an error
# Errors that every request of the plan would meet again.
_MISTAKES = (InvalidRequestError, NotFoundError, AuthenticationError, ForbiddenError)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run. Exactly one of `clients` (closed loop) and `rate` (open loop, requests a second) is set.

    It ends after `seconds` or `requests`, whichever is first, and waits for the requests in flight. The first `warmup`
    answers are not counted. An answer counts for goodput if its latency is at most `bound` seconds. The requests take
    the images in turn; `fresh`, if it is set, changes the image and the question of each.
    """

    images: Sequence[bytes]
    question: str
    clients: int | None = None
    rate: float | None = None
    seconds: float = 30.0
    requests: int = 100_000
    warmup: int = 0
    bound: float = 1.0
    timeout: float = 60.0
    seed: int = 0
    fresh: Fresh | None = None
    options: GenerateOptions = field(default_factory=GenerateOptions)

    def __post_init__(self) -> None:
        if (self.clients is None) == (self.rate is None):
            raise InvalidRequestError("load: give either clients (closed loop) or a rate (open loop)")
        for name in ("clients", "rate", "seconds", "requests", "bound", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidRequestError(f"load: {name} must be above 0, got {value}")
        if self.rate is not None and not isfinite(self.rate):
            raise InvalidRequestError(f"load: rate must be finite, got {self.rate}; all requests would be due at once")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request. `due` is a monotonic time; `ttft` and `total` are seconds after it.

    `ttft` is None if no token came. `error` is the name of what failed, `reason` its message, and then `usage` is None.
    """

    due: float
    ttft: float | None
    total: float
    tokens: int = 0
    error: str | None = None
    reason: str = ""
    usage: Usage | None = None


async def drive(
    client: AsyncClient, plan: Plan, on_outcome: Callable[[Outcome], None] = lambda _: None
) -> list[Outcome]:
    """Runs the plan and calls `on_outcome` after each request. The error of one request is an outcome too.

    Raises the ClientError of a request that is itself wrong, since every other would be.
    """
    try:
        return await _drive(client, plan, on_outcome)
    except* _MISTAKES as mistakes:
        first = mistakes.exceptions[0]
    raise first


async def _drive(client: AsyncClient, plan: Plan, on_outcome: Callable[[Outcome], None]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = time.monotonic()

    async def one(query: _Query, due: float) -> Outcome:
        outcome = await _ask(client, plan, query, due)
        outcomes.append(outcome)
        on_outcome(outcome)
        return outcome

    if plan.clients is not None:
        numbers = iter(range(plan.requests))

        async def worker() -> None:
            for number in numbers:
                if time.monotonic() - start >= plan.seconds:
                    return
                query = await _query(plan, number)
                if (await one(query, time.monotonic())).error is not None:
                    await asyncio.sleep(_PAUSE_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.clients):
                group.create_task(worker())
    else:
        async with asyncio.TaskGroup() as group:
            async for query, due in _arrivals(plan, start):
                group.create_task(one(query, due))
    return sorted(outcomes, key=lambda outcome: outcome.due)


@dataclass(frozen=True)
class _Query:
    """What a request asks about which pictures."""

    images: Sequence[bytes]
    question: str


async def _query(plan: Plan, number: int) -> _Query:
    """That of a request, whose picture is none if the plan has none."""
    images = [plan.images[number % len(plan.images)]] if plan.images else []
    if plan.fresh is None:
        return _Query(images, plan.question)
    changed = [await asyncio.to_thread(plan.fresh.picture, image, number) for image in images]
    return _Query(changed, plan.fresh.question(plan.question, number))


async def _arrivals(plan: Plan, start: float) -> AsyncIterator[tuple[_Query, float]]:
    """Each request and its due time, when it is due."""
    generator, due = random.Random(plan.seed), start
    for number in range(plan.requests):
        due += generator.expovariate(plan.rate or 1.0)
        if due - start >= plan.seconds:
            return
        query = await _query(plan, number)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield query, due


async def _ask(client: AsyncClient, plan: Plan, query: _Query, due: float) -> Outcome:
    first: float | None = None
    tokens, error, reason, usage = 0, None, "", None
    try:
        async for chunk in client.stream(query.images, query.question, timeout=plan.timeout, **plan.options):
            first = first or time.monotonic()
            tokens += len(chunk.token_ids)
            usage = chunk.usage
    except _MISTAKES:
        raise
    except ClientError as failure:
        error, reason, usage = type(failure).__name__, str(failure), None
    else:
        if usage is None:
            error, reason = "no end", "the stream ended before the answer did"
        else:
            tokens = usage.completion_tokens
    total, ttft = time.monotonic() - due, None if first is None else first - due
    return Outcome(due=due, ttft=ttft, total=total, tokens=tokens, error=error, reason=reason, usage=usage)
