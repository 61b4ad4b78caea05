"""The hop to a decoder, and failover in mid-stream.

The gateway holds the compact tokens and the ids that were emitted. When a decoder fails, another one gets both. It
prefills prompt and ids and goes on: the caller sees one stream, in which nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from fsr.common.wire.message_size import check_tokens_size
from fsr.gateway.hops.replies import UNREADABLE
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import Attempts, RetryPolicy
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.replica import Replica
from fsr.gateway.telemetry.trace_attributes import failover_attributes
from fsr.v1 import decoder_pb2

__all__ = ["DecoderHop"]


class _Stalled(Exception):
    """The decoder has sent no message for too long."""


class _Unreadable(Exception):
    """The decoder has sent a message that gRPC could not parse."""


class DecoderHop:
    """Streams one answer from as many decoders as it takes."""

    def __init__(self, pools: Pools, policy: RetryPolicy) -> None:
        self._pools, self._policy = pools, policy

    async def answer(
        self,
        model: str,
        request: decoder_pb2.DecodeRequest,
        context: RequestContext,
        images: Sequence[bytes | memoryview] = (),
    ) -> AsyncGenerator[tuple[Replica, decoder_pb2.DecodeResponse], None]:
        """Yields each message with its sender; the last message has a finish reason. Leaves `request` as it is.

        Args:
            images: the request's field of this name as `relayed_images` gives it, unless `request` has it itself.

        Raises ServiceError.
        """
        check_tokens_size(request.ByteSize() + sum(map(len, images)))
        fingerprint, emitted = request.fingerprint, list(request.emitted_token_ids)

        def choose(without: Collection[str]) -> Replica:
            return self._pools.pick_decoder(model, fingerprint, without)

        last_loss = partial(self._pools.last_loss, "decoder", model)
        attempts, record = Attempts(self._policy, choose, context, last_loss), context.record
        while True:
            replica = await attempts.next()
            record.decoders.append(replica.address)
            replica_fingerprint = replica.fingerprint  # read before the call: it is empty as soon as the decoder drains
            failovers, record.failovers = attempts.failures - record.failovers, attempts.failures
            self._policy.metrics.failovers.labels(model).inc(failovers)  # of 0 too: so the first one is an increase
            if failovers:
                context.span.event("failover", failover_attributes(replica=replica.address, emitted=len(emitted)))
            attempt = b"".join((_continuation(request, fingerprint, emitted).SerializeToString(), *images))
            with attempts.calling(replica) as half_open_call:
                try:
                    async with aclosing(self._read(replica, attempt, context, attempts.span.metadata)) as messages:
                        async for message in messages:
                            replica.answered()
                            attempts.received(len(message.token_ids))
                            # A question without images goes to any checkpoint, but that one must finish the answer.
                            fingerprint = fingerprint or replica_fingerprint
                            emitted.extend(message.token_ids)
                            if message.finish_reason:
                                attempts.succeeded(replica)
                                replica.load = message.stats.load if message.stats.HasField("load") else replica.load
                            yield replica, message
                            if message.finish_reason:
                                return
                    attempts.fault(replica, "ended its stream without a reason", half_open_call, gone=False)
                except grpc.aio.AioRpcError as error:
                    attempts.failed(replica, error, half_open_call)
                except _Stalled as error:
                    attempts.fault(replica, str(error), half_open_call, gone=True)
                except _Unreadable:
                    attempts.fault(replica, UNREADABLE, half_open_call, gone=False)

    async def _read(
        self,
        replica: Replica,
        request: bytes,
        context: RequestContext,
        metadata: tuple[tuple[str, str], ...],
    ) -> AsyncGenerator[decoder_pb2.DecodeResponse, None]:
        call = replica.decode(request, timeout=context.deadline.remaining(), metadata=metadata)
        patience = self._policy.settings.first_token_seconds
        try:
            while True:
                try:
                    async with asyncio.timeout(patience):
                        message: Any = await call.read()  # EOF, None, or a message
                except TimeoutError:
                    raise _Stalled(f"sent nothing for {patience:g} s") from None
                if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                    return
                if message is None:
                    raise _Unreadable
                if not message.token_ids and not message.finish_reason:
                    replica.answered()  # it is at work on the prompt
                    continue
                yield message
                patience = self._policy.settings.stall_seconds
        finally:
            call.cancel()  # frees the decoder's slot at once when the caller has gone


def _continuation(
    request: decoder_pb2.DecodeRequest, fingerprint: str, emitted: Sequence[int]
) -> decoder_pb2.DecodeRequest:
    """The request with what is known of its answer so far. Not copied for an answer that has not begun."""
    if fingerprint == request.fingerprint and len(emitted) == len(request.emitted_token_ids):
        return request
    continuation = decoder_pb2.DecodeRequest()
    continuation.CopyFrom(request)
    continuation.fingerprint = fingerprint
    continuation.emitted_token_ids[:] = emitted
    return continuation
