"""What a call can raise.

ClientError
├── InvalidRequestError      the request must change; the message names the field and the remedy
├── AuthenticationError      no API key, or one that the gateway does not know
├── ForbiddenError           the API key does not allow this
├── NotFoundError            no such model
├── OverloadedError          no room now; try again after `retry_after`
├── UnavailableError         the gateway or a replica cannot be reached
├── DeadlineExceeded         no complete answer within the timeout
├── FailedPreconditionError  encoder and decoder hold different checkpoints
└── ServerError              any other failure: a fault of the service
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from fsr.client.types import Route
from fsr.common.wire.transport import RETRY_AFTER

__all__ = [
    "ASK_NAMES",
    "NAMES",
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
    "is_from_gateway",
    "retry_hint",
]


class ClientError(Exception):
    """Base of everything that this package raises.

    `retry_after`: seconds after which the service says to try again, or None. `route`: the request's id and
    the replicas that were asked, or None if the request did not reach the gateway.
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
    """The gateway or a replica cannot be reached."""


class DeadlineExceeded(ClientError):
    """The answer was not complete within the timeout."""


class FailedPreconditionError(ClientError):
    """Encoder and decoder hold different checkpoints."""


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


# What an error of gRPC itself means for the caller of a gateway.
_GRPC_DETAILS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: "request: is larger than the gateway takes ({details}); scale the pictures "
    "down, send fewer, or raise the gateway's --max-message-bytes",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout: no complete answer within {timeout:g} s; allow more time",
    grpc.StatusCode.UNAVAILABLE: "gateway: no connection ({details}); start it with `fsr up`, or check that the "
    "address is its host:port, and that both sides use TLS or neither",
    grpc.StatusCode.UNIMPLEMENTED: "gateway: the service at this address is not a gateway ({details}); check that the "
    "port is not an encoder's or a decoder's",
}


# Beginnings of the gateway's messages, which name fields of its own request, and what the caller of the SDK calls them.
NAMES = {
    "sampling.": "",
    "method.options": "options",
    "method.name": "method",
    "budget.spread": "spread",
    "budget.tokens": "budget",
    "budget.keep_ratio": "budget",
    "deadline": "timeout",
}
#: Of a single question, which has no messages.
ASK_NAMES = NAMES | {"messages: the last turn ": "question: ", "messages: ": "question: "}


def is_from_gateway(error: grpc.aio.AioRpcError) -> bool:
    """Whether a gateway says so itself. Otherwise gRPC does: the connection broke, or this is no gateway."""
    trailing: Any = error.trailing_metadata() or ()
    return Route.of(trailing) is not None or retry_hint(error) is not None


def retry_hint(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds after which the gateway says to try again; None if it does not say so."""
    trailing: Any = error.trailing_metadata() or ()
    hint = dict(trailing).get(RETRY_AFTER, "")
    return int(hint) / 1000 if hint.isdigit() else None


def from_rpc(error: grpc.aio.AioRpcError, timeout: float, names: Mapping[str, str] | None = None) -> ClientError:
    """The exception for a failed call.

    The gateway's own errors carry trailing metadata of ours, and their details already name the field and the remedy.
    Errors without it come from gRPC itself: the code alone decides their kind.

    Args:
        timeout: the call's, in seconds.
        names: what to write in place of a beginning of the gateway's message; the first that fits.
    """
    code, details = error.code(), error.details() or error.code().name
    trailing: Any = error.trailing_metadata() or ()
    kind = _KINDS.get(code, ServerError)
    if not is_from_gateway(error):
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC's bound on the size of a message
            kind = InvalidRequestError
        details = _GRPC_DETAILS.get(code, "{details}").format(details=details, timeout=timeout)
    elif beginning := next((name for name in names or () if details.startswith(name)), ""):
        details = (names or {})[beginning] + details.removeprefix(beginning)
    return kind(details, retry_hint(error), Route.of(trailing))
