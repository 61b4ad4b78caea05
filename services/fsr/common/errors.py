"""What can go wrong, and the gRPC status each becomes.

ServiceError
├── InvalidRequest      INVALID_ARGUMENT     the caller must change the request
├── Unauthenticated     UNAUTHENTICATED      no key, or one that nobody knows
├── Forbidden           PERMISSION_DENIED    a known key that may not do this
├── UnknownModel        NOT_FOUND
├── Mismatch            FAILED_PRECONDITION  encoder and decoder hold different checkpoints
├── Overloaded          RESOURCE_EXHAUSTED   try again later
├── NotReady            UNAVAILABLE          no replica, or it is going away
├── Expired             DEADLINE_EXCEEDED
└── Failed              INTERNAL             a fault of ours; the logs of that request tell more
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, cast

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
    """Base of all errors that a caller is told about; the message names the field and the remedy.

    `retry_after` in seconds is told to the caller where it is known.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequest(ServiceError):
    """The request itself is wrong."""


class Unauthenticated(ServiceError):
    """The caller shows no key, or one that is unknown."""


class Forbidden(ServiceError):
    """The caller's key does not allow this."""


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


class Failed(ServiceError):
    """A fault of ours."""


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
    """Seconds after which the peer says that it is worth trying again."""
    trailing: Any = error.trailing_metadata() or ()
    value = dict(trailing).get(RETRY_AFTER)
    try:
        return None if value is None else int(value) / 1000
    except ValueError:
        return None


def from_rpc(error: grpc.aio.AioRpcError, peer: str) -> ServiceError:
    """The error that a failed call to `peer` is for our own caller."""
    kind = _BY_STATUS.get(error.code(), Failed)
    if kind is Failed:
        log.error("peer failed", peer=peer, code=error.code().name, details=error.details())
        return Failed(f"{peer}: failed ({error.code().name}); its logs tell more")
    return kind(error.details() or "", retry_after(error))


async def _abort(context: grpc.aio.ServicerContext, error: ServiceError) -> NoReturn:
    trailing = list(context.trailing_metadata() or ())
    if error.retry_after is not None:
        trailing.append((RETRY_AFTER, str(round(error.retry_after * 1000))))
    await context.abort(status_of(error), str(error), tuple(trailing))
    raise AssertionError("abort returns never")


def unary_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turns the errors of a unary rpc into its status; any other exception is logged and becomes INTERNAL."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(self, request, context)
        except ServiceError as error:
            await _abort(context, error)
        except Exception:
            log.exception("unexpected", rpc=method.__name__)
            await _abort(context, Failed(f"{method.__name__}: failed unexpectedly; the service's log tells more"))

    return wrapped


def stream_errors(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """Turns the errors of a server-streaming rpc into its status; any other exception is logged and is INTERNAL."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async with aclosing(cast("AsyncGenerator[Any, None]", method(self, request, context))) as messages:
                async for message in messages:
                    yield message
        except ServiceError as error:
            await _abort(context, error)
        except Exception:
            log.exception("unexpected", rpc=method.__name__)
            await _abort(context, Failed(f"{method.__name__}: failed unexpectedly; the service's log tells more"))

    return wrapped
