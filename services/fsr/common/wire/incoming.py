"""How a server of ours takes the one message of a call: bounded in time and in fields, and refused if it is unreadable.

gRPC's own way is to read and to parse the message of a unary call before any code of ours runs. A message without end
would be waited for forever, and an unreadable one would become UNKNOWN, in no metric. So to gRPC every call here is one
with a stream of messages, of which the first is read. On the wire both are the same.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from fsr.common.errors import Expired, InvalidRequest, ServiceError, set_status, status_of
from fsr.common.wire.wire_fields import MAX_FIELDS, parse_message

__all__ = ["IncomingMessages"]

log = structlog.get_logger()
# Of health and reflection, which are open to everybody.
_OPEN_SECONDS = 5.0
_OPEN_BYTES = 4096

_Parse = Callable[[bytes], Any]


class IncomingMessages(grpc.aio.ServerInterceptor):
    """Gives the methods of `service` their messages. What it refuses it logs, and counts by `count` with rpc and code.

    The messages of all other services of the server are bounded too, more tightly.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        count: Callable[[str, str], None],
        *,
        seconds: float,
        max_fields: int = MAX_FIELDS,
    ) -> None:
        self._count, self._seconds = count, seconds
        self._parsers: dict[str, _Parse] = {
            f"/{service.full_name}/{method.name}": partial(
                parse_message, message_factory.GetMessageClass(method.input_type), max_fields=max_fields
            )
            for method in service.methods
        }

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC says so
            return None  # type: ignore[return-value]
        parse = self._parsers.get(handler_call_details.method)
        if parse is None:
            receive = partial(self._receive, "", _OPEN_SECONDS, partial(_parse_small, handler.request_deserializer))
        else:
            rpc = handler_call_details.method.rpartition("/")[2]
            receive = partial(self._receive, rpc, self._seconds, parse)
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                _returning(handler.unary_unary, receive), response_serializer=handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            _streaming(handler, receive), response_serializer=handler.response_serializer
        )

    async def _receive(self, rpc: str, seconds: float, parse: _Parse, context: grpc.aio.ServicerContext) -> Any:
        """The next message; None if there is none, or if it was refused."""
        code = "CANCELLED"  # also for a message that gRPC itself refuses: of too many bytes, or compressed
        try:
            data: Any = await _read(context, seconds)
            if data is grpc.aio.EOF:  # type: ignore[attr-defined]
                return None
            message = parse(data)
            code = ""
            return message
        except ServiceError as error:
            code = status_of(error).name
            log.info("refused", rpc=rpc, code=code, reason=str(error))
            set_status(context, error)
            return None
        finally:
            if rpc and code:
                self._count(rpc, code)


async def _read(context: grpc.aio.ServicerContext, seconds: float) -> Any:
    """Raises Expired."""
    try:
        async with asyncio.timeout(seconds):
            return await context.read()
    except TimeoutError as error:
        raise Expired(f"request: did not arrive within {seconds:g} s; send a smaller one, or faster") from error


def _parse_small(deserialize: _Parse, data: bytes) -> Any:
    """A message of health or reflection. Raises InvalidRequest."""
    if len(data) > _OPEN_BYTES:
        raise InvalidRequest(f"request: {len(data)} bytes are more than {_OPEN_BYTES}; name one service or symbol")
    try:
        return deserialize(data)
    except DecodeError as error:
        raise InvalidRequest("request: cannot be read; check the client") from error


_Receive = Callable[[grpc.aio.ServicerContext], Awaitable[Any]]


async def _only(receive: _Receive, context: grpc.aio.ServicerContext) -> Any:
    """The message of a call that has one; None if it was refused."""
    request = await receive(context)
    if request is None and context.code() is None:
        set_status(context, InvalidRequest("request: has no message; send one"))
    return request


def _returning(method: Callable[..., Awaitable[Any]], receive: _Receive) -> Callable[..., Awaitable[Any]]:
    async def answer(context: grpc.aio.ServicerContext) -> Any:
        request = await _only(receive, context)
        return None if request is None else await method(request, context)

    async def returning(_: object, context: grpc.aio.ServicerContext) -> Any:
        response = await answer(context)
        if response is None:  # the context has a status, before which gRPC would send an empty response
            trailing = tuple(context.trailing_metadata() or ())
            await context.abort(context.code() or grpc.StatusCode.INTERNAL, context.details(), trailing)
        return response

    return returning


def _streaming(handler: Any, receive: _Receive) -> Callable[..., Any]:
    async def messages(context: grpc.aio.ServicerContext) -> AsyncGenerator[Any, None]:
        while (message := await receive(context)) is not None:
            yield message

    async def writer(_: object, context: grpc.aio.ServicerContext) -> None:
        request = await _only(receive, context)
        if request is not None:
            await handler.unary_stream(request, context)

    async def generator(_: object, context: grpc.aio.ServicerContext) -> AsyncGenerator[Any, None]:
        if handler.request_streaming:
            responses = handler.stream_stream(messages(context), context)
        else:
            request = await _only(receive, context)
            if request is None:
                return
            responses = handler.unary_stream(request, context)
        async with aclosing(responses):
            async for response in responses:
                yield response

    # A streaming method may be a coroutine that writes its responses, or a generator of them.
    return writer if inspect.iscoroutinefunction(handler.unary_stream) else generator
