"""The asynchronous client."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Unpack

from fsr.client.arrays import has_numpy
from fsr.client.calls import Calls, whole_answer
from fsr.client.channel import Tls
from fsr.client.errors import ASK_NAMES, NAMES, InvalidRequestError
from fsr.client.gateways import Gateways
from fsr.client.media import Images, is_content
from fsr.client.messages import Messages
from fsr.client.requests import (
    CompressOptions,
    GenerateOptions,
    chat_request,
    compress_request,
    generate_request,
)
from fsr.client.resume import check_seconds
from fsr.client.timeouts import CallTime
from fsr.client.types import Answer, Chunk, Compression
from fsr.common.wire.transport import REPLICAS
from fsr.v1 import gateway_pb2

__all__ = ["DEFAULT_ADDRESS", "DEFAULT_TIMEOUT", "MODELS_TIMEOUT", "PLAIN_KEY", "RESUME_SECONDS", "AsyncClient"]

DEFAULT_ADDRESS = "127.0.0.1:20050"
DEFAULT_TIMEOUT = 120.0  # seconds of a question or a compression
MODELS_TIMEOUT = 10.0  # seconds of a list of models
RESUME_SECONDS = 30.0  # that a broken stream waits for a gateway
PLAIN_KEY = "api_key: goes to {address} in plain text; use {remedy} where the network is trusted"


class AsyncClient:
    """Talks to a gateway. It may be made before there is an event loop; one loop at a time uses it.

    `address` may be a list of gateways of the same service: one is called, and the next one once that one fails. A
    stream that breaks goes on at another gateway, or at the same address again: no text is lost or comes twice. Until
    one goes on, a stream waits at most `resume_seconds`; 0 raises the error of a broken stream at once.

    Every call takes `timeout` in seconds, in which pictures are read and fetched too; None leaves it to the gateway. It
    raises a `ClientError` if it fails, and RuntimeError if the client is closed, or belongs to a process before a fork.

    `tls` encrypts the connection. `api_key` is sent with each call; to another machine without `tls` it is a warning,
    unless the network is trusted and `insecure` says so. With `replicas` the gateway says which encoders and decoders
    it has asked (`Route`).
    """

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        replicas: bool = False,
        resume_seconds: float = RESUME_SECONDS,
        insecure: bool = False,
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise InvalidRequestError("api_key: is empty or holds characters that a header cannot carry; check the key")
        metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {api_key.strip()}"),) if api_key else ()
        if replicas:
            metadata += ((REPLICAS, "1"),)
        self.gateways = Gateways(address, tls)
        self._calls = Calls(self.gateways, metadata, check_seconds(resume_seconds))
        if api_key and not insecure and (plain := self.gateways.in_plain_text):
            warnings.warn(PLAIN_KEY.format(address=plain, remedy="tls=Tls(...), or insecure=True"), stacklevel=2)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections. It may be called again."""
        await self.gateways.close()

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
        return await whole_answer(self.stream(images, question, timeout=timeout, **arguments))

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
        async with aclosing(self._calls.answer(request, time, ASK_NAMES)) as chunks:
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
        return await whole_answer(self.generate(messages, timeout=timeout, **arguments))

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
        async with aclosing(self._calls.answer(request, time, names)) as chunks:
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
        return Compression.of(*await self._calls.unary("Compress", request, time, NAMES))

    async def models(self, *, timeout: float | None = MODELS_TIMEOUT) -> list[gateway_pb2.AvailableModel]:
        """Returns the models that can be asked, with the number of replicas of each and the policy for the caller."""
        request = gateway_pb2.ListModelsRequest()
        response, _ = await self._calls.unary("ListModels", request, CallTime(timeout), NAMES)
        return list(response.models)
