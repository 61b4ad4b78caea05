"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Unpack

import grpc
from google.protobuf.message import Message

from fsr.client.arrays import has_numpy
from fsr.client.channel import Connection, Tls
from fsr.client.errors import ASK_NAMES, NAMES, InvalidRequestError, ServerError, from_rpc
from fsr.client.kept_tokens import KeptTokens
from fsr.client.media import Images, is_content
from fsr.client.messages import Messages
from fsr.client.requests import (
    CompressOptions,
    GenerateOptions,
    chat_request,
    compress_request,
    generate_request,
)
from fsr.client.timeouts import CallTime
from fsr.client.types import Answer, Chunk, Compression, Route, TokenChoice, Usage
from fsr.common.transport import MESSAGE_BYTES, REPLICAS
from fsr.v1 import decoder_pb2, gateway_pb2

__all__ = ["DEFAULT_ADDRESS", "DEFAULT_TIMEOUT", "MODELS_TIMEOUT", "AsyncClient"]

DEFAULT_ADDRESS = "127.0.0.1:20050"
DEFAULT_TIMEOUT = 120.0  # seconds of a question or a compression
MODELS_TIMEOUT = 10.0  # seconds of a list of models

_REASONS = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


class AsyncClient:
    """Talks to one gateway. It may be made before there is an event loop; one loop at a time uses it.

    Every call takes `timeout` in seconds, in which pictures are read and fetched too; None leaves it to the gateway. It
    raises a `ClientError` if it fails, and RuntimeError if the client is closed, or belongs to a process before a fork.

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
        self.connection = Connection(address, tls)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. It may be called again."""
        await self.connection.close()

    async def ask(
        self,
        images: Images,
        question: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> Answer:
        """Asks one question about pictures and videos, and returns the whole answer.

        `images`: one picture or video or a list of them, in any form of `ImageSource`; an empty list for none.
        `arguments`: see `GenerateOptions`.
        """
        return await _whole(self.stream(images, question, timeout=timeout, **arguments))

    async def stream(
        self,
        images: Images,
        question: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """The same as `ask`, and streams the answer.

        To cancel the request in every service, leave the loop early inside `contextlib.aclosing`.
        """
        time = CallTime(timeout)
        build = partial(generate_request, images, question, deadline=time.end, **arguments)
        request = build() if is_content(images) else await asyncio.to_thread(build)
        async with aclosing(self._answer(request, time, ASK_NAMES)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def chat(
        self,
        messages: Messages,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> Answer:
        """Continues a conversation of several turns, whose last one is the user's question.

        `messages`: each a `Message` with its pictures and videos, or a dictionary with `role` and `content`.
        `arguments`: see `GenerateOptions`.
        """
        return await _whole(self.generate(messages, timeout=timeout, **arguments))

    async def generate(
        self,
        messages: Messages | gateway_pb2.GenerateRequest,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """The same as `chat`, and streams the answer; see `stream`. It also takes a request built by the caller."""
        time = CallTime(timeout)
        if not isinstance(messages, gateway_pb2.GenerateRequest):
            names, request = NAMES, await asyncio.to_thread(chat_request, messages, deadline=time.end, **arguments)
        elif arguments:
            raise TypeError(f"{next(iter(arguments))}: belongs into the request, which is built already; set it there")
        else:
            names, request = {}, messages
        async with aclosing(self._answer(request, time, names)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def compress(
        self,
        images: Images,
        instruction: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[CompressOptions],
    ) -> Compression:
        """Returns the kept visual tokens as arrays of NumPy, for a language model of the caller's.

        `images`: as for `ask`. `arguments`: see `CompressOptions`.
        """
        if not has_numpy():
            raise InvalidRequestError("compress: returns arrays of NumPy, which is not installed; pip install numpy")
        time = CallTime(timeout)
        build = partial(compress_request, images, instruction, deadline=time.end, **arguments)
        request = build() if is_content(images) else await asyncio.to_thread(build)
        _check_size(request)
        try:
            call = self.connection.stub().Compress(request, timeout=time.left(), metadata=self._metadata)
            response, route = await call, Route.of(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, time.seconds, NAMES) from error
        return Compression.of(response, route)

    async def models(self, *, timeout: float | None = MODELS_TIMEOUT) -> list[gateway_pb2.AvailableModel]:
        """Returns the models that can be asked, with the number of replicas of each and the policy for the caller."""
        time, request = CallTime(timeout), gateway_pb2.ListModelsRequest()
        try:
            call = self.connection.stub().ListModels(request, timeout=time.left(), metadata=self._metadata)
            return list((await call).models)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, time.seconds, NAMES) from error

    async def _answer(
        self, request: gateway_pb2.GenerateRequest, time: CallTime, names: Mapping[str, str]
    ) -> AsyncGenerator[Chunk, None]:
        _check_size(request)
        call = self.connection.stub().Generate(request, timeout=time.left(), metadata=self._metadata)
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
            raise from_rpc(error, time.seconds, names) from error
        finally:
            call.cancel()


async def _whole(stream: AsyncGenerator[Chunk, None]) -> Answer:
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
    )


def _check_size(request: Message) -> None:
    if request.ByteSize() > MESSAGE_BYTES:
        size = f"{request.ByteSize()} bytes exceed {MESSAGE_BYTES}"
        raise InvalidRequestError(f"images: the request's {size}; scale the pictures down or send fewer")
