"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Unpack

import grpc
from google.protobuf.message import Message

from fsr.client.channel import Tls, open_channel
from fsr.client.errors import InvalidRequestError, ServerError, from_rpc
from fsr.client.kept_tokens import KeptTokens
from fsr.client.media import ImageSource
from fsr.client.requests import CompressOptions, GenerateOptions, compress_request, generate_request
from fsr.client.types import Answer, Chunk, Compression, Route, TokenChoice, Usage
from fsr.common.transport import MESSAGE_BYTES, REPLICAS
from fsr.v1 import decoder_pb2, gateway_pb2, gateway_pb2_grpc

__all__ = ["DEFAULT_ADDRESS", "DEFAULT_TIMEOUT", "MODELS_TIMEOUT", "AsyncClient"]

DEFAULT_ADDRESS = "127.0.0.1:20050"
DEFAULT_TIMEOUT = 120.0  # seconds of a question or a compression
MODELS_TIMEOUT = 10.0  # seconds of a list of models

_REASONS = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


class AsyncClient:
    """Talks to one gateway. Every call takes `timeout` in seconds and raises a `ClientError` if it fails.

    `tls` encrypts the connection. `api_key` is sent with each call: use it with TLS, or on a trusted network only. With
    `replicas` the gateway says which encoders and decoders it has asked (`Route`).
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        replicas: bool = False,
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise InvalidRequestError("api_key: is empty or holds characters that a header cannot carry; check the key")
        self._metadata: tuple[tuple[str, str], ...] = (
            (("authorization", f"Bearer {api_key.strip()}"),) if api_key else ()
        )
        if replicas:
            self._metadata += ((REPLICAS, "1"),)
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
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """Asks one question about pictures (paths or bytes) and videos (`Video`) and streams the answer.

        `options`: see `GenerateOptions`. To cancel the request in every service, leave the loop early inside
        `contextlib.aclosing`.
        """
        async with aclosing(self.generate(generate_request(images, question, **options), timeout=timeout)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate(
        self, request: gateway_pb2.GenerateRequest, *, timeout: float = DEFAULT_TIMEOUT
    ) -> AsyncGenerator[Chunk, None]:
        """Streams the answer to a request that the caller has built, such as one of several turns."""
        _check_size(request)
        call = self._stub.Generate(request, timeout=timeout, metadata=self._metadata)
        try:
            async for message in call:
                chunk = Chunk(
                    text=message.text,
                    token_ids=tuple(message.token_ids),
                    logprobs=tuple(message.logprobs),
                    token_choices=tuple(TokenChoice.of(choice) for choice in message.token_choices),
                    images=tuple(KeptTokens.of(image) for image in message.images),
                )
                reason = _REASONS.get(message.finish_reason)
                if reason is not None:
                    route = Route.of(await call.trailing_metadata())
                    chunk = replace(chunk, finish_reason=reason, usage=Usage.of(message.usage), route=route)
                yield chunk
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, timeout) from error
        finally:
            call.cancel()

    async def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Asks one question and returns the whole answer; options as for `stream`."""
        chunks = [chunk async for chunk in self.stream(images, question, timeout=timeout, **options)]
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
        )

    async def compress(
        self,
        images: ImageSource | Sequence[ImageSource],
        instruction: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[CompressOptions],
    ) -> Compression:
        """Returns the kept visual tokens, for a language model of the caller's.

        `options`: see `CompressOptions`.
        """
        request = compress_request(images, instruction, **options)
        _check_size(request)
        try:
            call = self._stub.Compress(request, timeout=timeout, metadata=self._metadata)
            response, route = await call, Route.of(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, timeout) from error
        return Compression.of(response, route)

    async def models(self, *, timeout: float = MODELS_TIMEOUT) -> list[gateway_pb2.AvailableModel]:
        """Returns the models that can be asked, with the number of replicas of each and the policy for the caller."""
        request = gateway_pb2.ListModelsRequest()
        try:
            return list((await self._stub.ListModels(request, timeout=timeout, metadata=self._metadata)).models)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, timeout) from error


def _check_size(request: Message) -> None:
    if request.ByteSize() > MESSAGE_BYTES:
        size = f"{request.ByteSize()} bytes exceed {MESSAGE_BYTES}"
        raise InvalidRequestError(f"images: the request's {size}; scale the pictures down or send fewer")
