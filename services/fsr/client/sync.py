"""The synchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Unpack

from fsr.client.aio import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, MODELS_TIMEOUT, AsyncClient
from fsr.client.channel import Tls
from fsr.client.media import ImageSource
from fsr.client.requests import CompressOptions, GenerateOptions
from fsr.client.types import Answer, Chunk, Compression
from fsr.v1 import gateway_pb2

__all__ = ["Client"]


class Client:
    """`AsyncClient` for code without an event loop. One thread at a time may use it.

    Raises RuntimeError if an event loop already runs, as in a notebook: use `AsyncClient` there.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        replicas: bool = False,
    ) -> None:
        if _in_a_loop():
            raise RuntimeError(
                "Client: an event loop runs here, as in notebooks; use AsyncClient: answer = await client.ask(...)"
            )

        async def open_client() -> AsyncClient:
            return AsyncClient(address, tls=tls, api_key=api_key, replicas=replicas)

        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(open_client())
        except BaseException:
            self._runner.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._runner.run(self._client.close())
        self._runner.close()

    def stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """See `AsyncClient.stream`. Leaving the loop early cancels the request."""
        chunks = self._client.stream(images, question, timeout=timeout, **options)
        try:
            while True:
                try:
                    yield self._runner.run(_next(chunks))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(chunks.aclose())

    def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """See `AsyncClient.ask`."""
        return self._runner.run(self._client.ask(images, question, timeout=timeout, **options))

    def compress(
        self,
        images: ImageSource | Sequence[ImageSource],
        instruction: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **options: Unpack[CompressOptions],
    ) -> Compression:
        """See `AsyncClient.compress`."""
        return self._runner.run(self._client.compress(images, instruction, timeout=timeout, **options))

    def models(self, *, timeout: float = MODELS_TIMEOUT) -> list[gateway_pb2.AvailableModel]:
        """See `AsyncClient.models`."""
        return self._runner.run(self._client.models(timeout=timeout))


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _next(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)
