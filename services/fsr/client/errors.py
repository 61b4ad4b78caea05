"""What a call can raise.

ClientError
├── InvalidRequestError    the message names the field and the remedy
├── AuthenticationError    no API key, or one that the gateway does not know
├── ForbiddenError         the key does not allow this
├── NotFoundError          unknown model
├── OverloadedError        try again later: `retry_after` says when
├── UnavailableError       gateway or replica not there
├── DeadlineExceeded       it took longer than the timeout
├── FailedPreconditionError  encoder and decoder hold different checkpoints
└── ServerError            anything else: a fault of the service
"""

from __future__ import annotations

from typing import Any

import grpc

from fsr.client.types import Route
from fsr.common.transport import RETRY_AFTER

__all__ = [
    "AuthenticationError",
    "ClientError",
    "DeadlineExceeded",
    "FailedPreconditionError",
    "ForbiddenError",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "ServerError",
    "UnavailableError",
    "from_rpc",
]


class ClientError(Exception):
    """Base of everything that this package raises.

    `retry_after`: seconds after which the service says it is worth trying again, where it does. `route`: which
    replicas were asked, where the request got that far.
    """

    def __init__(self, message: str, retry_after: float | None = None, route: Route | None = None) -> None:
        super().__init__(message)
        self.retry_after, self.route = retry_after, route


class InvalidRequestError(ClientError):
    """The request must be changed."""


class AuthenticationError(ClientError):
    """The gateway wants an API key that it knows."""


class ForbiddenError(ClientError):
    """The API key does not allow this."""


class NotFoundError(ClientError):
    """No such model."""


class OverloadedError(ClientError):
    """No room now."""


class UnavailableError(ClientError):
    """Nobody answers at that address, or a replica is missing."""


class DeadlineExceeded(ClientError):
    """It took longer than the timeout."""


class FailedPreconditionError(ClientError):
    """Encoder and decoder do not fit together."""


class ServerError(ClientError):
    """The service failed."""


_KINDS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
}


def from_rpc(error: grpc.aio.AioRpcError, timeout: float) -> ClientError:
    """The exception that a failed call becomes."""
    details = error.details() or error.code().name
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        remedy = "scale the pictures down, send fewer, or raise the gateway's --max-message-bytes"
        return InvalidRequestError(f"request: is larger than the gateway takes ({details}); {remedy}")
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and ":" not in details:
        details = f"timeout: no complete answer within {timeout:g} s; allow more time"
    if error.code() == grpc.StatusCode.UNAVAILABLE and "connect" in details:
        details = f"gateway: no connection ({details}); is it there, and do both sides use TLS or neither?"
    if error.code() == grpc.StatusCode.UNAVAILABLE and details.startswith("errors resolving"):
        details = f"gateway: its address leads nowhere ({details}); write host:port, such as 127.0.0.1:50050"
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        details = f"gateway: what answers at this address is none ({details}); an encoder's or a decoder's port?"
    trailing: Any = error.trailing_metadata() or ()
    hint = dict(trailing).get(RETRY_AFTER, "")
    kind = _KINDS.get(error.code(), ServerError)
    return kind(details, int(hint) / 1000 if hint.isdigit() else None, Route.of(trailing))
