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
from contextlib import aclosing
from typing import Any, cast

import grpc
import structlog

from fsr.common.wire.transport import RETRY_AFTER

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
    "set_status",
    "shortened",
    "status_of",
    "stream_errors",
    "unary_errors",
]

log = structlog.get_logger()
# Of an error's message in UTF-8. It travels in trailers, where a byte that is no ASCII takes three. A client refuses
# trailers beyond 8 KiB, and then sees RESOURCE_EXHAUSTED in place of the error's own code.
_MOST_BYTES = 600


class ServiceError(Exception):
    """Base of all errors that go to a caller; the message names the field and the remedy.

    A long message loses its middle: text of a caller may be in it. `retry_after`: seconds after which a caller should
    try again, or None if that is unknown.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(shortened(message))
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
    except (ValueError, OverflowError):
        return None


def from_rpc(error: grpc.aio.AioRpcError, peer: str) -> ServiceError:
    """The error that our own caller gets for a failed call to `peer`."""
    kind = _BY_STATUS.get(error.code(), Failed)
    if kind is Failed:
        log.error("peer failed", peer=peer, code=error.code().name, details=error.details())
        return Failed(f"{peer}: failed ({error.code().name}); its log says more")
    return kind(error.details() or "", retry_after(error))


def shortened(text: str, most: int = _MOST_BYTES) -> str:
    """`text`, without its middle if it takes more than `most` bytes of UTF-8."""
    if len(text) <= most and len(text.encode(errors="replace")) <= most:
        return text
    half = most // 2
    beginning = text[:half].encode(errors="replace")[:half].decode(errors="ignore")
    end = text[-half:].encode(errors="replace")[-half:].decode(errors="ignore")
    return f"{beginning} ... {end}"


def set_status(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    """The call ends with the status of this error as soon as its handler returns.

    `context.abort` would do it too, but it keeps the exception that it raises. That one holds the frames of the
    handler, and so the request, until the garbage collector comes to such old objects.
    """
    trailing = list(context.trailing_metadata() or ())
    if error.retry_after is not None:
        trailing.append((RETRY_AFTER, str(round(error.retry_after * 1000))))
    context.set_trailing_metadata(tuple(trailing))
    context.set_code(status_of(error))
    context.set_details(str(error))


def _unexpected(rpc: str) -> Failed:
    """Logs the exception that is being handled. The caller learns nothing of it."""
    log.exception("unexpected", rpc=rpc)
    return Failed(f"{rpc}: failed unexpectedly; the service's log says more")


def unary_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Decorates a unary rpc: an error that it raises becomes the call's status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except ServiceError as error:
            set_status(context, error)
        except Exception:
            set_status(context, _unexpected(method.__name__))

    return wrapped


def stream_errors(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Decorates a server-streaming rpc: an error that it raises becomes the call's status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        messages = cast("AsyncGenerator[Any, None]", method(self, request, context))
        try:
            async with aclosing(messages):
                async for message in messages:
                    yield message
        except ServiceError as error:
            set_status(context, error)
        except Exception:
            set_status(context, _unexpected(method.__name__))

    return wrapped
