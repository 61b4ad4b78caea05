"""Quality canary: some requests are asked once more without compression, and the two answers compared.

It runs after the caller has its answer, one at a time, and only while the replicas have little to do; as soon as they
have more it is given up. So it is the first thing shed, and it never takes more than its share of the requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from itertools import zip_longest

import structlog

from fsr.common.errors import Overloaded, ServiceError
from fsr.gateway.deadline import Deadline
from fsr.gateway.decoder_hop import Decoding
from fsr.gateway.encoder_hop import Encoding
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Retrying
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.settings import GatewaySettings
from fsr.gateway.usage import DEFAULT_METHOD
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2

__all__ = ["Canary", "Share", "bucket", "tokens_agreed"]

log = structlog.get_logger()
_LOOK_SECONDS = 0.05
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0)


class Share:
    """Lets through at most the share `of` of what it has seen, evenly, and never makes up for what was not taken."""

    def __init__(self, of: float) -> None:
        self._of, self._credit = of, 0.0

    def due(self) -> bool:
        """For each that is seen: whether one may be taken now."""
        self._credit = min(1.0, self._credit + self._of)
        return self._credit >= 1.0

    def take(self) -> None:
        self._credit -= 1.0


def bucket(kept: int, source: int) -> str:
    """The smallest bound, of a few, on the share of tokens that was kept: a label with few values."""
    return next(f"{bound:g}" for bound in _BUCKETS if kept <= bound * source)


def tokens_agreed(one: Sequence[int], other: Sequence[int]) -> int:
    """Places at which both answers have the same token id."""
    return sum(a == b for a, b in zip_longest(one, other))


class Canary:
    """Considers every complete answer; off where the share is 0."""

    def __init__(self, pools: Pools, metrics: Metrics, settings: GatewaySettings) -> None:
        self._pools, self._metrics, self._settings = pools, metrics, settings
        self._share = Share(settings.canary_share)
        self._task: asyncio.Task[None] | None = None
        # Given up at the first failure, and counted apart, so that savings stay those of the callers' requests. And a
        # replica may fail at all tokens that is well with callers' few, or the other way round: it is judged by theirs.
        once = settings.model_copy(update={"max_failovers": 0})
        apart = Retrying(once, Metrics(), RetryBudget(0.0, 0), aside=True)
        self._encoding, self._decoding = Encoding(pools, apart), Decoding(pools, apart)

    def consider(
        self,
        model: str,
        asked: encoder_pb2.EncodeRequest,
        answered: decoder_pb2.DecodeRequest,
        encoded: encoder_pb2.EncodeResponse,
    ) -> None:
        """Called once an answer is complete, with the requests that gave it; it may change them later on.

        Only greedy answers from fewer than all tokens are compared: of others one would not know what differs.
        """
        kept, source = (sum(n) for n in zip(*((len(i.index), i.source_tokens) for i in encoded.images), strict=True))
        if not self._settings.canary_share or kept >= source or answered.sampling.temperature > 0:
            return
        if not self._share.due():
            return
        if self._task is not None or not self._spare(model):
            self._metrics.canary_skipped.labels("busy").inc()
            return
        self._share.take()
        by = (model, asked.method.name or DEFAULT_METHOD, bucket(kept, source))
        self._task = asyncio.create_task(self._run(by, asked, answered))
        self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            log.error("canary failed unexpectedly", exc_info=task.exception())

    def _spare(self, model: str) -> bool:
        """Whether replicas have little to do besides the canary's own call, and KV memory is mostly free."""
        encoders, decoders = self._pools.of("encoder", model), self._pools.of("decoder", model)
        # Other gateways' calls count too, as decoders last told; they did so in an answer's end, which counted itself.
        told = [max(d.outstanding, d.load.running + d.load.waiting - 1) for d in decoders]
        work = sum(told) + sum(e.outstanding for e in encoders) - (self._task is not None)
        roomy = [d for d in decoders if not d.load.waiting and 2 * d.load.kv_bytes_free >= d.load.kv_bytes_capacity]
        return work <= self._settings.canary_max_requests and bool(roomy)

    async def _run(
        self, by: tuple[str, str, str], asked: encoder_pb2.EncodeRequest, answered: decoder_pb2.DecodeRequest
    ) -> None:
        compressed = list(answered.emitted_token_ids)
        asking = asyncio.create_task(self._ask(by[0], asked, answered))
        try:
            while not asking.done():
                await asyncio.wait([asking], timeout=_LOOK_SECONDS)
                if not asking.done() and not self._spare(by[0]):
                    self._metrics.canary_skipped.labels("shed").inc()
                    return
            whole = asking.result()
        except Overloaded:
            self._metrics.canary_skipped.labels("shed").inc()
            return
        except ServiceError as error:
            log.info("canary failed", reason=str(error))
            self._metrics.canary_skipped.labels("failed").inc()
            return
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError, ServiceError):
                await asking
        self._metrics.canary_answers.labels(*by).inc()
        self._metrics.canary_exact.labels(*by).inc(compressed == whole)
        self._metrics.canary_tokens.labels(*by).inc(max(len(compressed), len(whole)))
        self._metrics.canary_tokens_agreed.labels(*by).inc(tokens_agreed(compressed, whole))

    async def _ask(
        self, model: str, asked: encoder_pb2.EncodeRequest, answered: decoder_pb2.DecodeRequest
    ) -> list[int]:
        """Token ids of the answer from all visual tokens."""
        deadline, trail = Deadline(self._settings.canary_timeout_seconds), Trail(asked.request_id)
        asked.budget.CopyFrom(types_pb2.Budget(keep_ratio=1.0))
        encoded = await self._encoding.encode(model, asked, deadline, trail)
        del answered.images[:], answered.emitted_token_ids[:]
        answered.images.extend(encoded.images)
        async with aclosing(self._decoding.answer(model, answered, deadline, trail)) as answer:
            return [token async for _, message in answer for token in message.token_ids]
