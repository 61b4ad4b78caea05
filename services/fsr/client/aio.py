"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import Message

from fsr.client.channel import Tls, open_channel
from fsr.client.errors import InvalidRequestError, ServerError, from_rpc
from fsr.client.media import ImageSource
from fsr.client.requests import compress_request, generate_request
from fsr.client.types import Answer, Chunk, Compression, ImageTokens, Route, Usage
from fsr.common.transport import MESSAGE_BYTES
from fsr.v1 import decoder_pb2, gateway_pb2, gateway_pb2_grpc

__all__ = ["AsyncClient"]

_REASONS = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


class AsyncClient:
    """Talks to one gateway. Every call takes `timeout` in seconds; failures raise `ClientError`s.

    `tls` encrypts the connection; `api_key` is shown with each call (use it with TLS only, or on a trusted network).
    """

    def __init__(self, address: str = "127.0.0.1:50050", *, tls: Tls | None = None, api_key: str | None = None) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise InvalidRequestError("api_key: holds characters that no header may; check how it was read")
        self._metadata = (("authorization", f"Bearer {api_key.strip()}"),) if api_key else ()
        self._channel = open_channel(address, tls)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close(None)

    async def stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        timeout: float = 120.0,
        **options: Any,
    ) -> AsyncGenerator[Chunk, None]:
        """Asks one question about pictures (paths or bytes) and videos (`Video`) and streams the answer.

        Options: `budget` (tokens, a share, or "auto") of each picture or video, its `spread` over tiles or frames
        ("even" or "free"), `method` and its `options`, `model`, `wire_dtype`, `max_tokens`, `temperature`, `top_p`,
        `top_k`, `repetition_penalty`, `seed`, `stop`, `ignore_eos`, `logprobs`. Leaving the loop early (with
        `aclosing`) cancels the request in every service.
        """
        async with aclosing(self.generate(generate_request(images, question, **options), timeout=timeout)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate(
        self, request: gateway_pb2.GenerateRequest, *, timeout: float = 120.0
    ) -> AsyncGenerator[Chunk, None]:
        """Streams the answer to a request that was built by hand: several turns, say."""
        _check_size(request)
        call = self._stub.Generate(request, timeout=timeout, metadata=self._metadata)
        try:
            async for message in call:
                text, ids, logprobs = message.text, tuple(message.token_ids), tuple(message.logprobs)
                if message.finish_reason not in _REASONS:
                    yield Chunk(text, ids, logprobs)
                    continue
                route, usage = Route.of(await call.trailing_metadata()), Usage.of(message.usage)
                yield Chunk(text, ids, logprobs, _REASONS[message.finish_reason], usage, route)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, timeout) from error
        finally:
            call.cancel()

    async def ask(self, images: ImageSource | Sequence[ImageSource], question: str, **options: Any) -> Answer:
        """The whole answer; options as for `stream`."""
        chunks = [chunk async for chunk in self.stream(images, question, **options)]
        last = chunks[-1] if chunks else None
        if last is None or last.finish_reason is None or last.usage is None:
            raise ServerError("the gateway ended its stream without a reason; see its logs")
        return Answer(
            "".join(chunk.text for chunk in chunks),
            tuple(number for chunk in chunks for number in chunk.token_ids),
            tuple(value for chunk in chunks for value in chunk.logprobs),
            last.finish_reason,
            last.usage,
            last.route,
        )

    async def compress(
        self, images: ImageSource | Sequence[ImageSource], instruction: str, *, timeout: float = 120.0, **options: Any
    ) -> Compression:
        """The kept visual tokens, for a language model of your own.

        Options: `budget`, `spread`, `method` and its `options`, `model`, `wire_dtype`, `explain`.
        """
        request = compress_request(images, instruction, **options)
        _check_size(request)
        try:
            call = self._stub.Compress(request, timeout=timeout, metadata=self._metadata)
            told, route = await call, Route.of(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, timeout) from error
        kept = tuple(ImageTokens.of(image) for image in told.images)
        return Compression(told.request_id, told.fingerprint, kept, route)

    async def models(self, *, timeout: float = 10.0) -> list[gateway_pb2.AvailableModel]:
        """Models that can be asked for, and how many replicas serve each."""
        request = gateway_pb2.ListModelsRequest()
        try:
            return list((await self._stub.ListModels(request, timeout=timeout, metadata=self._metadata)).models)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, timeout) from error


def _check_size(request: Message) -> None:
    if request.ByteSize() > MESSAGE_BYTES:
        size = f"{request.ByteSize()} bytes exceed {MESSAGE_BYTES}"
        raise InvalidRequestError(f"images: the request's {size}; scale the pictures down or send fewer")
