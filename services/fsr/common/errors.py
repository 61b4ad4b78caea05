"""The errors of the services, and the gRPC status that each becomes.

ServiceError
├── InvalidRequest      INVALID_ARGUMENT     the caller must change the request
├── Unauthenticated     UNAUTHENTICATED      no API key, or an unknown one
├── Forbidden           PERMISSION_DENIED    a known API key that does not allow this
├── UnknownModel        NOT_FOUND            no replica serves a model of that name
├── Mismatch            FAILED_PRECONDITION  encoder and decoder hold different checkpoints
├── Overloaded          RESOURCE_EXHAUSTED   try again later
├── NotReady            UNAVAILABLE          no replica answers, or the service shuts down
├── Expired             DEADLINE_EXCEEDED    the caller's deadline has passed
└── Failed              INTERNAL             a fault of the service; the log lines of that request say more
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import grpc
import structlog

from fsr.common.transport import RETRY_AFTER

__all__ = [
    "STATUS",
    "Expired",
    "Failed",
    "Forbidden",
    "InvalidRequest",
    "Mismatch",
    "NotReady",
    "Overloaded",
    "ServiceError",
    "Unauthenticated",
    "UnknownModel",
    "from_rpc",
    "retry_after",
    "status_of",
    "stream_errors",
    "unary_errors",
]

log = structlog.get_logger()


class ServiceError(Exception):
    """Base of all errors that go to a caller; the message names the field and the remedy.

    `retry_after`: seconds after which a caller should try again, or None if that is unknown.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequest(ServiceError):
    """The request itself is wrong."""


class Unauthenticated(ServiceError):
    """The caller sends no API key, or an unknown one."""


class Forbidden(ServiceError):
    """The caller's API key does not allow this."""


class UnknownModel(ServiceError):
    """No replica serves a model of that name."""


class Mismatch(ServiceError):
    """The embeddings come from another checkpoint than the language model."""


class Overloaded(ServiceError):
    """There is no room for one more request now."""


class NotReady(ServiceError):
    """A replica is missing, or the service shuts down."""


class Expired(ServiceError):
    """The caller's deadline has passed."""


class Failed(ServiceError):
    """A fault of the service."""


STATUS: dict[type[ServiceError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    Mismatch: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    Failed: grpc.StatusCode.INTERNAL,
}
_BY_STATUS = {code: kind for kind, code in STATUS.items()}


def status_of(error: ServiceError) -> grpc.StatusCode:
    """The status that an error becomes."""
    return STATUS[type(error)]


def retry_after(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds after which the peer says to try again; None if it does not say so."""
    trailing: Any = error.trailing_metadata() or ()
    value = dict(trailing).get(RETRY_AFTER)
    try:
        return None if value is None else int(value) / 1000
    except ValueError:
        return None


def from_rpc(error: grpc.aio.AioRpcError, peer: str) -> ServiceError:
    """The error that our own caller gets for a failed call to `peer`."""
    kind = _BY_STATUS.get(error.code(), Failed)
    if kind is Failed:
        log.error("peer failed", peer=peer, code=error.code().name, details=error.details())
        return Failed(f"{peer}: failed ({error.code().name}); its log says more")
    return kind(error.details() or "", retry_after(error))


@asynccontextmanager
async def _errors_as_status(rpc: str, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """Ends the call with the status of an error; any other exception is logged and becomes INTERNAL."""
    try:
        yield
    except ServiceError as error:
        await _abort(context, error)
    except Exception:
        log.exception("unexpected", rpc=rpc)
        await _abort(context, Failed(f"{rpc}: failed unexpectedly; the service's log says more"))


async def _abort(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    """Raises gRPC's own exception for an ended call."""
    trailing = list(context.trailing_metadata() or ())
    if error.retry_after is not None:
        trailing.append((RETRY_AFTER, str(round(error.retry_after * 1000))))
    await context.abort(status_of(error), str(error), tuple(trailing))


def unary_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Decorates a unary rpc: an error that it raises becomes the call's status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with _errors_as_status(method.__name__, context):
            return await method(self, request, context)

    return wrapped


def stream_errors(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Decorates a server-streaming rpc: an error that it raises becomes the call's status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        messages = cast("AsyncGenerator[Any, None]", method(self, request, context))
        async with _errors_as_status(method.__name__, context), aclosing(messages):
            async for message in messages:
                yield message

    return wrapped
