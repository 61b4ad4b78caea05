"""Load on a gateway through its public API, and what came of it.

Closed loop: so many clients, each asks again as soon as it is answered. Open loop: requests arrive at a mean rate,
as a Poisson process, whether or not earlier ones are answered; their latency counts from the moment they were due, so
that a server that stalls cannot hide it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from fsr.client.aio import AsyncClient
from fsr.client.errors import (
    AuthenticationError,
    ClientError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
)

__all__ = ["Outcome", "Plan", "Summary", "drive", "percentile", "summarise"]


_PAUSE_SECONDS = 0.1  # that a client of a closed loop waits after an error
_MISTAKES = (InvalidRequestError, NotFoundError, AuthenticationError, ForbiddenError)  # of the caller's, not of load


@dataclass(frozen=True)
class Plan:
    """One run. Exactly one of `clients` (closed loop) and `rate` (open loop, requests a second) is set.

    It ends after `seconds` or `requests`, whichever is first; requests under way are waited for. The first `warmup`
    answers are not counted. `bound` is the latency in seconds up to which an answer counts as good.
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
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if (self.clients is None) == (self.rate is None):
            raise InvalidRequestError("load: give either clients (closed loop) or a rate (open loop)")
        for name in ("clients", "rate", "seconds", "requests", "bound", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidRequestError(f"load: {name} must be above 0, got {value}")
        if self.rate is not None and not isfinite(self.rate):
            raise InvalidRequestError(f"load: rate must be finite, got {self.rate}; all requests would be due at once")


@dataclass(frozen=True)
class Outcome:
    """One request. Seconds from when it was due; `ttft` is None where no token came."""

    due: float
    ttft: float | None
    total: float
    tokens: int = 0
    error: str | None = None
    visual_tokens: int = 0
    prompt_tokens: int = 0
    cached_images: int = 0
    failovers: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Summary:
    """What a run came to. Latencies in seconds, of answers without error."""

    requests: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    goodput: float
    good_share: float
    latency: dict[str, float]
    ttft: dict[str, float]
    time_per_output_token: float
    visual_tokens: float
    prompt_tokens: float
    cached_images: int
    failovers: int
    retries: int


async def drive(client: AsyncClient, plan: Plan, told: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Runs the plan; `told` hears of each outcome as it comes. Errors of single requests are outcomes too.

    Raises the ClientError that says so where the request itself is wrong, and would be each time.
    """
    try:
        return await _drive(client, plan, told)
    except* _MISTAKES as mistakes:
        first = mistakes.exceptions[0]
    raise first


async def _drive(client: AsyncClient, plan: Plan, told: Callable[[Outcome], None]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    began = time.monotonic()

    async def one(number: int, due: float) -> None:
        outcome = await _ask(client, plan, number, due)
        outcomes.append(outcome)
        told(outcome)

    if plan.clients is not None:
        numbers = iter(range(plan.requests))

        async def worker() -> None:
            for number in numbers:
                if time.monotonic() - began >= plan.seconds:
                    return
                await one(number, time.monotonic())
                if outcomes[-1].error is not None:
                    await asyncio.sleep(_PAUSE_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.clients):
                group.create_task(worker())
    else:
        async with asyncio.TaskGroup() as group:
            async for number, due in _arrivals(plan, began):
                group.create_task(one(number, due))
    return sorted(outcomes, key=lambda outcome: outcome.due)


async def _arrivals(plan: Plan, began: float) -> AsyncIterator[tuple[int, float]]:
    clock, due = random.Random(plan.seed), began
    for number in range(plan.requests):
        due += clock.expovariate(plan.rate or 1.0)
        if due - began >= plan.seconds:
            return
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        yield number, due


async def _ask(client: AsyncClient, plan: Plan, number: int, due: float) -> Outcome:
    first, tokens, usage = None, 0, None
    try:
        async for chunk in client.stream(
            plan.images[number % len(plan.images)] if plan.images else [],
            plan.question,
            timeout=plan.timeout,
            **dict(plan.options),
        ):
            first = first or time.monotonic()
            tokens += len(chunk.token_ids)
            usage = chunk.usage
    except _MISTAKES:
        raise
    except ClientError as error:
        return Outcome(due, first and first - due, time.monotonic() - due, tokens, type(error).__name__)
    if usage is None:
        return Outcome(due, first and first - due, time.monotonic() - due, tokens, "no end")
    return Outcome(
        due,
        first and first - due,
        time.monotonic() - due,
        usage.completion_tokens,
        None,
        usage.visual_tokens_kept,
        usage.prompt_tokens,
        usage.cached_images,
        usage.failovers,
        usage.retries,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics; NaN of nothing."""
    if not values:
        return float("nan")
    ordered, at = sorted(values), share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": percentile(values, share / 100) for share in (50, 90, 95, 99)} | {
        "max": max(values, default=float("nan"))
    }


def summarise(outcomes: Sequence[Outcome], plan: Plan) -> Summary:
    """Counts everything after the warm-up; rates are over the time from its first request due to its last answer."""
    counted = list(outcomes)[plan.warmup :]
    answered = [outcome for outcome in counted if outcome.error is None]
    good = [outcome for outcome in answered if outcome.total <= plan.bound]
    seconds = max((o.due + o.total for o in counted), default=0.0) - min((o.due for o in counted), default=0.0)
    per = 1 / seconds if seconds > 0 else float("nan")
    gaps = [(o.total - o.ttft) / (o.tokens - 1) for o in answered if o.ttft is not None and o.tokens > 1]
    mean = 1 / len(answered) if answered else float("nan")
    return Summary(
        requests=len(counted),
        errors=dict(Counter(o.error for o in counted if o.error is not None)),
        seconds=seconds,
        requests_per_second=len(answered) * per,
        tokens_per_second=sum(o.tokens for o in answered) * per,
        goodput=len(good) * per,
        good_share=len(good) / len(counted) if counted else float("nan"),
        latency=_percentiles([o.total for o in answered]),
        ttft=_percentiles([o.ttft for o in answered if o.ttft is not None]),
        time_per_output_token=percentile(gaps, 0.5),
        visual_tokens=sum(o.visual_tokens for o in answered) * mean,
        prompt_tokens=sum(o.prompt_tokens for o in answered) * mean,
        cached_images=sum(o.cached_images for o in answered),
        failovers=sum(o.failovers for o in answered),
        retries=sum(o.retries for o in answered),
    )
