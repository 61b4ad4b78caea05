"""What can go wrong, and the gRPC status each becomes.

ServiceError
├── InvalidRequest      INVALID_ARGUMENT     the caller must change the request
├── UnknownModel        NOT_FOUND
├── Mismatch            FAILED_PRECONDITION  encoder and decoder hold different checkpoints
├── Overloaded          RESOURCE_EXHAUSTED   try again later
├── NotReady            UNAVAILABLE          no replica, or it is going away
└── Expired             DEADLINE_EXCEEDED
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog

__all__ = [
    "STATUS",
    "Expired",
    "InvalidRequest",
    "Mismatch",
    "NotReady",
    "Overloaded",
    "ServiceError",
    "UnknownModel",
    "status_of",
    "stream_errors",
    "unary_errors",
]

log = structlog.get_logger()


class ServiceError(Exception):
    """Base of all errors that a caller is told about; the message names the field and the remedy."""


class InvalidRequest(ServiceError):
    """The request itself is wrong."""


class UnknownModel(ServiceError):
    """No replica serves a model of that name."""


class Mismatch(ServiceError):
    """Embeddings come from another checkpoint than the language model's."""


class Overloaded(ServiceError):
    """No room for one more request now."""


class NotReady(ServiceError):
    """What is needed is not there yet, or is shutting down."""


class Expired(ServiceError):
    """The caller's deadline has passed."""


STATUS: dict[type[ServiceError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    Mismatch: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_BY_STATUS = {code: kind for kind, code in STATUS.items()}


def status_of(error: ServiceError) -> grpc.StatusCode:
    """The status that an error becomes."""
    return STATUS[type(error)]


def from_rpc(error: grpc.aio.AioRpcError) -> ServiceError | None:
    """The error that a status means, or None for one that is nobody's fault but ours."""
    kind = _BY_STATUS.get(error.code())
    return None if kind is None else kind(error.details() or "")


async def _abort(context: grpc.aio.ServicerContext, error: ServiceError) -> NoReturn:
    log.info("refused", code=status_of(error).name, reason=str(error))
    await context.abort(status_of(error), str(error))
    raise AssertionError("abort returns never")


def unary_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turns the errors of a unary rpc into its status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except ServiceError as error:
            await _abort(context, error)

    return wrapped


def stream_errors(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Turns the errors of a server-streaming rpc into its status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async for message in method(self, request, context):
                yield message
        except ServiceError as error:
            await _abort(context, error)

    return wrapped
