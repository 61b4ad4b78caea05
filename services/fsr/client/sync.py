"""The synchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from typing import TypeVar, Unpack

from fsr.client.aio import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, MODELS_TIMEOUT, RESUME_SECONDS, AsyncClient
from fsr.client.channel import Tls, is_forked
from fsr.client.media import Images
from fsr.client.messages import Messages
from fsr.client.requests import CompressOptions, GenerateOptions
from fsr.client.types import Answer, Chunk, Compression
from fsr.v1 import gateway_pb2

__all__ = ["Client"]

_T = TypeVar("_T")


class Client:
    """`AsyncClient` for code without an event loop. One thread at a time may use it.

    Raises RuntimeError if an event loop already runs, as in a notebook: use `AsyncClient` there.
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
        _check_no_loop()
        self._client = AsyncClient(
            address, tls=tls, api_key=api_key, replicas=replicas, resume_seconds=resume_seconds, insecure=insecure
        )
        self._runner = asyncio.Runner()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. It may be called again."""
        if not self._client.gateways.closed and not is_forked():  # the event loop of a fork is its parent's
            self._run(self._client.close())
            self._runner.close()

    def ask(
        self,
        images: Images,
        question: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> Answer:
        """See `AsyncClient.ask`."""
        return self._run(self._client.ask(images, question, timeout=timeout, **arguments))

    def stream(
        self,
        images: Images,
        question: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """See `AsyncClient.stream`. Leaving the loop early cancels the request."""
        return self._iterate(self._client.stream(images, question, timeout=timeout, **arguments))

    def chat(
        self,
        messages: Messages,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> Answer:
        """See `AsyncClient.chat`."""
        return self._run(self._client.chat(messages, timeout=timeout, **arguments))

    def generate(
        self,
        messages: Messages | gateway_pb2.GenerateRequest,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """See `AsyncClient.generate`. Leaving the loop early cancels the request."""
        return self._iterate(self._client.generate(messages, timeout=timeout, **arguments))

    def compress(
        self,
        images: Images,
        instruction: str,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **arguments: Unpack[CompressOptions],
    ) -> Compression:
        """See `AsyncClient.compress`."""
        return self._run(self._client.compress(images, instruction, timeout=timeout, **arguments))

    def models(self, *, timeout: float | None = MODELS_TIMEOUT) -> list[gateway_pb2.AvailableModel]:
        """See `AsyncClient.models`."""
        return self._run(self._client.models(timeout=timeout))

    def _iterate(self, chunks: AsyncGenerator[Chunk, None]) -> Iterator[Chunk]:
        try:
            while True:
                try:
                    yield self._run(_next(chunks))
                except StopAsyncIteration:
                    return
        finally:
            if not self._client.gateways.closed and not is_forked():  # else the end of its event loop has closed it
                self._run(chunks.aclose())

    def _run(self, work: Coroutine[object, object, _T]) -> _T:
        """Runs it to its end. Raises RuntimeError, which says why, where it cannot run."""
        try:
            _check_no_loop()
            self._client.gateways.check()
            if self._runner.get_loop().is_running():
                raise RuntimeError("Client: another thread is in a call of it; make a client for each thread")
        except RuntimeError:
            work.close()
            raise
        return self._runner.run(work)


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "Client: an event loop runs here, as in notebooks; use AsyncClient: answer = await client.ask(...)"
    )


async def _next(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)
