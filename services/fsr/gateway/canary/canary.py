"""Quality canary: asks some requests once more without compression, and compares the two answers.

It runs after the caller has the answer, one at a time, and only while the replicas have little to do. It stops as soon
as they have more. So it is the first load to be shed, and it never takes more than its share of the requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from itertools import zip_longest

import structlog

from fsr.common.errors import Overloaded, ServiceError
from fsr.gateway.callers.auth import ANYBODY
from fsr.gateway.canary.export import CanaryExport, question_of
from fsr.gateway.hops.decoder_hop import DecoderHop
from fsr.gateway.hops.encoder_hop import EncoderHop
from fsr.gateway.hops.relayed_images import relayed_images
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import RetryPolicy
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2

__all__ = ["Canary", "Share", "bucket", "tokens_agreed"]

log = structlog.get_logger()
_LOOK_SECONDS = 0.05  # time between two looks at whether the replicas still have little to do
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0)


class Share:
    """Takes at most a share of the requests, evenly. What it does not take at its turn is lost."""

    def __init__(self, share: float) -> None:
        self._share, self._credit = share, 0.0

    def due(self) -> bool:
        """Call this for every request; returns whether one may be taken now."""
        self._credit = min(1.0, self._credit + self._share)
        return self._credit >= 1.0

    def take(self) -> None:
        self._credit -= 1.0


def bucket(kept: int, source: int) -> str:
    """The smallest of a few bounds on the share of kept tokens: a label with few values."""
    return next(f"{bound:g}" for bound in _BUCKETS if kept <= bound * source)


def tokens_agreed(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of positions at which both answers have the same token id."""
    return sum(a == b for a, b in zip_longest(first, second))


class Canary:
    """Looks at every complete answer; does nothing if the share is 0."""

    def __init__(
        self, pools: Pools, metrics: Metrics, settings: GatewaySettings, export: CanaryExport | None = None
    ) -> None:
        self._export = export
        self._pools, self._metrics, self._settings = pools, metrics, settings
        self._share = Share(settings.canary_share)
        self._task: asyncio.Task[None] | None = None
        # It gives up at the first failure. It has metrics of its own, so that savings stay those of callers' requests.
        # It does not judge replicas: one may fail with all tokens and be well with the callers' few.
        once = settings.model_copy(update={"max_failovers": 0})
        policy = RetryPolicy(once, Metrics(), RetryBudget(0.0, 0), judges_replicas=False)
        self._encoder_hop, self._decoder_hop = EncoderHop(pools, policy), DecoderHop(pools, policy)

    def consider(
        self,
        model: str,
        encode_request: encoder_pb2.EncodeRequest,
        decode_request: decoder_pb2.DecodeRequest,
        encoded: encoder_pb2.EncodeResponse,
        answer: Sequence[int],
    ) -> None:
        """Call this after every complete answer, with its token ids and the requests and response that led to it.

        It compares only greedy answers from fewer than all tokens: with others the cause of a difference is unknown.
        """
        kept = sum(len(image.index) for image in encoded.images)
        source = sum(image.source_tokens for image in encoded.images)
        if not self._settings.canary_share or kept >= source or decode_request.sampling.temperature > 0:
            return
        if not self._share.due():
            return
        if self._task is not None or not self._spare(model):
            self._metrics.canary_skipped.labels("busy").inc()
            return
        self._share.take()
        by = (model, encode_request.method.name, bucket(kept, source))
        uncompressed = encoder_pb2.EncodeRequest()
        uncompressed.CopyFrom(encode_request)
        uncompressed.budget.CopyFrom(types_pb2.Budget(keep_ratio=1.0))
        uncompressed.ClearField("bounds")  # of the caller's policy
        uncompressed.explain = False  # nobody reads it, and it would go on to the decoder
        # So the logs of all services show which calls are the canary's.
        uncompressed.request_id = f"{encode_request.request_id}-canary"
        with structlog.contextvars.bound_contextvars(request_id=uncompressed.request_id):
            self._task = asyncio.create_task(self._run(by, uncompressed, decode_request, answer))
        self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            log.error("canary failed unexpectedly", exc_info=task.exception())

    def _spare(self, model: str) -> bool:
        """Whether replicas have little to do besides the canary's own call, and KV memory is mostly free."""
        encoders, decoders = self._pools.serving("encoder", model), self._pools.serving("decoder", model)
        # Calls of other gateways count too, by the decoders' last reports. A report at an answer's end counts the
        # answer itself.
        running = [max(d.outstanding, d.load.running + d.load.waiting - 1) for d in decoders]
        calls = sum(running) + sum(e.outstanding for e in encoders) - (self._task is not None)
        roomy = any(not d.load.waiting and 2 * d.load.kv_bytes_free >= d.load.kv_bytes_capacity for d in decoders)
        return calls <= self._settings.canary_max_requests and roomy

    async def _run(
        self,
        by: tuple[str, str, str],
        encode_request: encoder_pb2.EncodeRequest,
        decode_request: decoder_pb2.DecodeRequest,
        compressed: Sequence[int],
    ) -> None:
        asking = asyncio.create_task(self._ask(by[0], encode_request, decode_request))
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
        same = compressed == whole
        if self._export is not None and (not same or self._settings.canary_export_all):
            question = question_of(decode_request.messages, encode_request.images)
            model, method, share = by
            about = {"model": model, "method": method, "most_kept": float(share), "same_answer": same}
            await self._export.add(question, about)

    async def _ask(
        self, model: str, encode_request: encoder_pb2.EncodeRequest, decode_request: decoder_pb2.DecodeRequest
    ) -> list[int]:
        """Token ids of the answer from all visual tokens."""
        deadline = Deadline(self._settings.canary_timeout_seconds)
        context = RequestContext(ANYBODY, deadline, RequestRecord(request_id=encode_request.request_id))
        _, reply = await self._encoder_hop.encode(model, encode_request, context)
        uncompressed = decoder_pb2.DecodeRequest(
            request_id=encode_request.request_id,
            fingerprint=decode_request.fingerprint,
            messages=decode_request.messages,
            sampling=decode_request.sampling,
            cache_salt=decode_request.cache_salt,
        )
        for unread in ("logprobs", "top_logprobs"):
            uncompressed.sampling.ClearField(unread)
        answer = self._decoder_hop.answer(model, uncompressed, context, relayed_images(reply))
        async with aclosing(answer):
            return [token async for _, message in answer for token in message.token_ids]
