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

    A unary method that yields its message instead of returning it runs on until the message is taken. What it sets in
    its context after that does not reach the caller: gRPC sends the status with the message.
    """

    def __init__(self, service: str, seconds: float, on_cut: Callable[[], object]) -> None:
        """Sets the task factory of the running event loop: it sees which task starts a handler's."""
        self._prefix, self._seconds, self._on_cut = f"/{service}/", seconds, on_cut
        self._ending: set[asyncio.Task[None]] = set()
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
        if handler.unary_unary is not None:
            make, answer = grpc.unary_unary_rpc_method_handler, partial(self._one, handler.unary_unary)
        else:
            make, answer = grpc.unary_stream_rpc_method_handler, partial(self._stream, handler.unary_stream)
        return make(answer, handler.request_deserializer, handler.response_serializer)

    async def _stream(self, method: Callable[..., Any], request: Any, context: grpc.aio.ServicerContext) -> None:
        async with aclosing(method(request, context)) as messages:
            async for message in messages:
                try:
                    async with asyncio.timeout(self._seconds):
                        await context.write(message)
                except TimeoutError:
                    self._cut(asyncio.current_task())
                    raise asyncio.CancelledError from None  # any other error would become a status

    async def _one(self, method: Callable[..., Any], request: Any, context: grpc.aio.ServicerContext) -> Any:
        """The message, which gRPC sends once this has returned it, with the status; None if the context has one."""
        handler, messages = asyncio.current_task(), _messages(method, request, context)
        message = await anext(messages, None)
        if message is not None and handler is not None:
            late = asyncio.get_running_loop().call_later(self._seconds, self._cut, handler)
            handler.add_done_callback(partial(self._taken, messages, late))
        return message

    def _taken(
        self, messages: AsyncGenerator[Any, None], late: asyncio.TimerHandle, handler: asyncio.Task[Any]
    ) -> None:
        late.cancel()
        ending = asyncio.get_running_loop().create_task(_ended(messages, was_taken=not handler.cancelled()))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _cut(self, handler: asyncio.Task[Any] | None) -> None:
        """Ends the call of a handler."""
        self._on_cut()
        log.warning("slow reader cut", seconds=self._seconds)
        waiting = self._waits_for.get(handler) if handler else None
        for task in (handler, waiting() if waiting else None):
            if task is not None and task is not asyncio.current_task():
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


async def _ended(messages: AsyncGenerator[Any, None], was_taken: bool) -> None:
    """Lets a method that has yielded its message run to its end, or closes it."""
    async with aclosing(messages):
        if was_taken:
            await anext(messages, None)


async def _messages(
    method: Callable[..., Any], request: Any, context: grpc.aio.ServicerContext
) -> AsyncGenerator[Any, None]:
    """What a unary method returns or yields."""
    if not inspect.isasyncgenfunction(method):
        response = await method(request, context)
        if response is not None:  # else the context has a status
            yield response
        return
    async with aclosing(method(request, context)) as messages:
        async for message in messages:
            yield message
