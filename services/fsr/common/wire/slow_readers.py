"""Callers by gRPC that stop reading their answers.

HTTP/2 lets a reader keep its window shut for as long as it likes, and grpc.aio waits for it without a bound: the answer
holds its slot, or a large one its memory, until the caller's deadline, or for ever. A server of grpc.aio has no way to
end such a call, because a status waits behind the message that is stuck. A call ends with RST_STREAM, though, when
nothing in Python holds it any more. So a call that is cut has both of its tasks cancelled: the one that runs the
handler, and the one that waits for the end of the call, which grpc.aio does not show. If another version of grpc does
this in another way, the slot is free all the same, and test_slow_readers.py fails.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import structlog

__all__ = ["SlowReaders"]

log = structlog.get_logger()
_HANDLER = "_handle_exceptions"  # name of the coroutine of grpc.aio that runs a handler


class SlowReaders(grpc.aio.ServerInterceptor):
    """Cuts a call of `service` whose caller takes no message for `seconds`, and calls `on_cut`.

    It sends unary answers too, as streams of one message, which callers cannot tell from each other. A unary method
    that yields its message instead of returning it runs on until the message is taken.
    """

    def __init__(self, service: str, seconds: float, on_cut: Callable[[], object]) -> None:
        """Sets the task factory of the running event loop: it sees which task starts a handler's."""
        self._prefix, self._seconds, self._on_cut = f"/{service}/", seconds, on_cut
        self._waits_for: weakref.WeakKeyDictionary[asyncio.Task[Any], weakref.ref[asyncio.Task[Any]]] = (
            weakref.WeakKeyDictionary()
        )
        asyncio.get_running_loop().set_task_factory(self._new_task)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        return grpc.unary_stream_rpc_method_handler(
            partial(self._answer, handler.unary_stream or handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    async def _answer(self, method: Callable[..., Any], request: Any, context: grpc.aio.ServicerContext) -> None:
        async with aclosing(_messages(method, request, context)) as messages:
            async for message in messages:
                try:
                    async with asyncio.timeout(self._seconds):
                        await context.write(message)
                except TimeoutError:
                    self._on_cut()
                    log.warning("slow reader cut", seconds=self._seconds)
                    self._end_call()
                    raise asyncio.CancelledError from None  # any other error would become a status

    def _end_call(self) -> None:
        handler = asyncio.current_task()
        waiting = self._waits_for.get(handler) if handler else None
        if waiting is not None and (task := waiting()) is not None:
            task.cancel()

    def _new_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        if getattr(coroutine, "__name__", "") == _HANDLER and (parent := asyncio.current_task(loop)) is not None:
            self._waits_for[task] = weakref.ref(parent)
        return task


async def _messages(
    method: Callable[..., Any], request: Any, context: grpc.aio.ServicerContext
) -> AsyncGenerator[Any, None]:
    """What a unary or a streaming method answers."""
    if not inspect.isasyncgenfunction(method):
        response = await method(request, context)
        if response is not None:  # else the context has a status
            yield response
        return
    async with aclosing(method(request, context)) as messages:
        async for message in messages:
            yield message
