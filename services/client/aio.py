"""The asynchronous client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grpc
from fsr.v1 import decoder_pb2, gateway_pb2, gateway_pb2_grpc, types_pb2

from services.client.errors import InvalidRequestError, ServerError, from_rpc
from services.client.types import Answer, Chunk, Compression, ImageTokens, Usage

__all__ = ["AsyncClient", "Budget", "ImageSource"]

ImageSource = str | os.PathLike[str] | bytes
Budget = int | float | Literal["auto"]
_MESSAGE_BYTES = 64 * 2**20
_REASONS = {decoder_pb2.FINISH_REASON_STOP: "stop", decoder_pb2.FINISH_REASON_LENGTH: "length"}


def _image(source: ImageSource) -> types_pb2.Image:
    if isinstance(source, bytes):
        return types_pb2.Image(data=source)
    try:
        return types_pb2.Image(data=Path(source).read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"image: cannot read {source} ({error.strerror}); check the path") from error


def _budget(budget: Budget) -> types_pb2.Budget:
    """An int is a number of tokens, a float a share of them, "auto" as many as the evidence asks for."""
    if budget == "auto":
        return types_pb2.Budget(auto=types_pb2.AutoBudget())
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise InvalidRequestError(f"budget: expected tokens (int), a share (float) or 'auto', got {budget!r}")
    if isinstance(budget, float):
        return types_pb2.Budget(keep_ratio=budget)
    if not -(2**31) <= budget < 2**31:
        raise InvalidRequestError(f"budget: {budget} tokens is no sensible number; a budget of all tokens keeps all")
    return types_pb2.Budget(tokens=budget)


def _method(name: str, options: Mapping[str, Any] | None) -> types_pb2.Method:
    method = types_pb2.Method(name=name)
    method.options.update(dict(options or {}))
    return method


class AsyncClient:
    """Talks to one gateway. Every call takes `timeout` in seconds; failures raise `ClientError`s."""

    def __init__(self, address: str = "127.0.0.1:50050") -> None:
        options = [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ]
        self._channel = grpc.aio.insecure_channel(address, options=options)
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
        budget: Budget = "auto",
        method: str = "fsr",
        options: Mapping[str, Any] | None = None,
        model: str = "",
        max_tokens: int = 0,
        temperature: float = 0.0,
        top_p: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        timeout: float = 120.0,
    ) -> AsyncIterator[Chunk]:
        """Asks one question about one or several pictures (paths or bytes) and streams the answer."""
        sources = [images] if isinstance(images, str | bytes | os.PathLike) else list(images)
        parts = [types_pb2.Part(image=i) for i in range(len(sources))]
        request = gateway_pb2.GenerateRequest(
            model=model,
            images=[_image(source) for source in sources],
            messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[*parts, types_pb2.Part(text=question)])],
            budget=_budget(budget),
            method=_method(method, options),
            sampling=types_pb2.Sampling(
                max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=list(stop)
            ),
        )
        async for chunk in self.generate(request, timeout=timeout):
            yield chunk

    async def generate(self, request: gateway_pb2.GenerateRequest, *, timeout: float = 120.0) -> AsyncIterator[Chunk]:
        """Streams the answer to a request that was built by hand: several turns, say."""
        try:
            async for message in self._stub.Generate(request, timeout=timeout):
                last = message.finish_reason in _REASONS
                yield Chunk(
                    message.text,
                    _REASONS.get(message.finish_reason),
                    Usage.of(message.usage) if last else None,
                )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error

    async def ask(self, images: ImageSource | Sequence[ImageSource], question: str, **options: Any) -> Answer:
        """The whole answer; options as for `stream`."""
        text = []
        async for chunk in self.stream(images, question, **options):
            text.append(chunk.text)
            if chunk.usage is not None and chunk.finish_reason is not None:
                return Answer("".join(text), chunk.finish_reason, chunk.usage)
        raise ServerError("the gateway ended its stream without a reason; see its logs")

    async def compress(
        self,
        images: ImageSource | Sequence[ImageSource],
        instruction: str,
        *,
        budget: Budget = "auto",
        method: str = "fsr",
        options: Mapping[str, Any] | None = None,
        model: str = "",
        explain: bool = False,
        timeout: float = 120.0,
    ) -> Compression:
        """The kept visual tokens, for a language model of your own."""
        sources = [images] if isinstance(images, str | bytes | os.PathLike) else list(images)
        request = gateway_pb2.CompressRequest(
            model=model,
            images=[_image(source) for source in sources],
            instruction=instruction,
            budget=_budget(budget),
            method=_method(method, options),
            explain=explain,
        )
        try:
            told = await self._stub.Compress(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        return Compression(told.request_id, told.fingerprint, tuple(ImageTokens.of(image) for image in told.images))

    async def models(self, *, timeout: float = 10.0) -> list[gateway_pb2.AvailableModel]:
        """Models that can be asked for, and how many replicas serve each."""
        try:
            return list((await self._stub.ListModels(gateway_pb2.ListModelsRequest(), timeout=timeout)).models)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
