"""Calls to a gateway, repeated at another one where that makes sense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import Message

from fsr.client.errors import InvalidRequestError, ServerError, from_rpc
from fsr.client.gateways import Gateways
from fsr.client.kept_tokens import KeptTokens
from fsr.client.resume import Repetition, Resumption
from fsr.client.timeouts import CallTime
from fsr.client.types import Answer, Chunk, Route, TokenChoice, Usage
from fsr.common.wire.transport import MESSAGE_BYTES
from fsr.v1 import decoder_pb2, gateway_pb2

__all__ = ["Calls", "whole_answer"]

_REASONS = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


class Calls:
    """Calls with the same metadata to the same gateways."""

    def __init__(self, gateways: Gateways, metadata: tuple[tuple[str, str], ...], resume_seconds: float) -> None:
        self._gateways, self._metadata, self._resume_seconds = gateways, metadata, resume_seconds

    async def unary(
        self, method: str, request: Message, call_time: CallTime, names: Mapping[str, str]
    ) -> tuple[Any, Route | None]:
        """The response. Raises ClientError."""
        check_size(request)
        repetition = self._repetition()
        while True:
            gateway = self._gateways.current
            try:
                call = getattr(gateway.stub(), method)(request, timeout=call_time.left(), metadata=self._metadata)
                return await call, Route.of(await call.trailing_metadata())
            except grpc.aio.AioRpcError as error:
                pause = repetition.pause(error)
                if pause is None or time.monotonic() + pause >= call_time.end:
                    raise from_rpc(error, call_time.seconds, names) from error
                self._gateways.failed(gateway)
            await asyncio.sleep(pause)

    async def answer(
        self, request: gateway_pb2.GenerateRequest, call_time: CallTime, names: Mapping[str, str]
    ) -> AsyncGenerator[Chunk, None]:
        """The pieces of an answer. If the gateway fails, another one goes on. Raises ClientError."""
        check_size(request)
        resumption = Resumption(request, self._repetition())
        while True:
            gateway = self._gateways.current
            call = gateway.stub().Generate(resumption.request, timeout=call_time.left(), metadata=self._metadata)
            try:
                async for message in call:
                    resumption.received(message)
                    chunk = _chunk(message, resumption.count)
                    if chunk.finish_reason is None:
                        yield chunk
                        continue
                    route = Route.of(await call.trailing_metadata())
                    yield replace(chunk, usage=Usage.of(message.usage), route=route)
                    return  # complete, whatever becomes of the gateway now
                return
            except grpc.aio.AioRpcError as error:
                pause = resumption.pause(error)
                if pause is None or time.monotonic() + pause >= call_time.end:
                    raise from_rpc(error, call_time.seconds, names) from error
                self._gateways.failed(gateway)
            finally:
                call.cancel()
            await asyncio.sleep(pause)

    def _repetition(self) -> Repetition:
        return Repetition(len(self._gateways), self._resume_seconds)


def _chunk(message: gateway_pb2.GenerateResponse, resumed: int) -> Chunk:
    return Chunk(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(message.logprobs),
        token_choices=tuple(TokenChoice.of(choice) for choice in message.token_choices),
        images=tuple(KeptTokens.of(image) for image in message.images),
        finish_reason=_REASONS.get(message.finish_reason),
        resumed=resumed,
        fingerprint=message.fingerprint,
    )


async def whole_answer(stream: AsyncGenerator[Chunk, None]) -> Answer:
    """The answer that a stream makes up. Raises ServerError if it has no end."""
    async with aclosing(stream):
        chunks = [chunk async for chunk in stream]
    last = chunks[-1] if chunks else None
    if last is None or last.finish_reason is None or last.usage is None:
        raise ServerError("gateway: the answer ended without a finish reason; see the gateway's logs")
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(value for chunk in chunks for value in chunk.logprobs),
        token_choices=tuple(choice for chunk in chunks for choice in chunk.token_choices),
        images=tuple(image for chunk in chunks for image in chunk.images),
        finish_reason=last.finish_reason,
        usage=last.usage,
        route=last.route,
        resumed=last.resumed,
        fingerprint=next((chunk.fingerprint for chunk in chunks if chunk.fingerprint), ""),
    )


def check_size(request: Message) -> None:
    """Raises InvalidRequestError if no gateway takes a request of this size."""
    if request.ByteSize() > MESSAGE_BYTES:
        size = f"{request.ByteSize()} bytes exceed {MESSAGE_BYTES}"
        raise InvalidRequestError(f"images: the request's {size}; scale the pictures down or send fewer")
