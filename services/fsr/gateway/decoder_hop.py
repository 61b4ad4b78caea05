"""The hop to a decoder, and failover in mid-stream.

The gateway holds the compact tokens and the ids that were emitted. When a replica fails it hands both to another one,
which prefills prompt and ids and goes on: one stream for the caller, nothing lost and nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

import grpc

from fsr.common.errors import InvalidRequest
from fsr.common.transport import MESSAGE_BYTES
from fsr.gateway.deadline import Deadline
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Attempts, Retrying
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.replica import Replica
from fsr.v1 import decoder_pb2

__all__ = ["Decoding"]


class _Stalled(Exception):
    """No message for too long."""


class Decoding:
    """Streams one answer from as many replicas as it takes."""

    def __init__(self, pools: Pools, shared: Retrying) -> None:
        self._pools, self._shared = pools, shared

    async def answer(
        self, model: str, request: decoder_pb2.DecodeRequest, deadline: Deadline, trail: Trail
    ) -> AsyncGenerator[tuple[Replica, decoder_pb2.DecodeResponse], None]:
        """Messages and who sent each; the last one has a finish reason. Grows `request.emitted_token_ids`
        and, where it is empty, sets `request.fingerprint`.

        Raises ServiceError.
        """
        if request.ByteSize() > MESSAGE_BYTES:
            size = f"{request.ByteSize()} bytes, more than {MESSAGE_BYTES}"
            raise InvalidRequest(f"budget: the kept tokens take {size}; keep fewer or set wire_dtype to bf16 or int8")

        def choose(without: Collection[str]) -> Replica:
            return self._pools.decoder(model, request.fingerprint, without)

        attempts = Attempts(self._shared, choose, deadline, trail)
        while True:
            replica = await attempts.next()
            trail.decoders.append(replica.address)
            held = replica.fingerprint  # now: one that drains tells no more, while it goes on answering
            self._shared.metrics.failovers.labels(model).inc(attempts.failures - trail.failovers)
            trail.failovers = attempts.failures
            with attempts.calling(replica) as trial:
                try:
                    async with aclosing(self._read(replica, request, deadline)) as messages:
                        async for message in messages:
                            replica.heard()
                            attempts.started = True
                            # A question without images goes to any checkpoint, but that one finishes the answer.
                            request.fingerprint = request.fingerprint or held
                            request.emitted_token_ids.extend(message.token_ids)
                            if message.finish_reason:
                                attempts.succeeded(replica)
                                replica.load = message.stats.load if message.stats.HasField("load") else replica.load
                            yield replica, message
                            if message.finish_reason:
                                return
                    attempts.fault(replica, "ended its stream without a reason", trial, gone=False)
                except grpc.aio.AioRpcError as error:
                    attempts.failed(replica, error, trial)
                except _Stalled as error:
                    attempts.fault(replica, str(error), trial, gone=True)

    async def _read(
        self, replica: Replica, request: decoder_pb2.DecodeRequest, deadline: Deadline
    ) -> AsyncGenerator[decoder_pb2.DecodeResponse, None]:
        call = replica.decoder.Decode(request, timeout=deadline.left())
        patience = self._shared.settings.first_token_seconds
        try:
            while True:
                try:
                    async with asyncio.timeout(patience):
                        message = await call.read()
                except TimeoutError:
                    raise _Stalled(f"said nothing for {patience:g} s") from None
                if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                    return
                yield message
                patience = self._shared.settings.stall_seconds
        finally:
            call.cancel()  # frees the replica's slot at once when the caller has gone
