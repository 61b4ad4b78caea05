"""What a call can raise.

ClientError
├── InvalidRequestError   the message names the field and the remedy
├── NotFoundError         unknown model
├── OverloadedError       try again later
├── UnavailableError      gateway or replica not there
├── DeadlineExceeded
└── ServerError           anything else: a fault of the service
"""

from __future__ import annotations

import grpc

__all__ = [
    "ClientError",
    "DeadlineExceeded",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "ServerError",
    "UnavailableError",
]


class ClientError(Exception):
    """Base of everything that this package raises."""


class InvalidRequestError(ClientError):
    """The request must be changed."""


class NotFoundError(ClientError):
    """No such model."""


class OverloadedError(ClientError):
    """No room now."""


class UnavailableError(ClientError):
    """Nobody answers at that address, or a replica is missing."""


class DeadlineExceeded(ClientError):
    """It took longer than the timeout."""


class ServerError(ClientError):
    """The service failed."""


_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc(error: grpc.aio.AioRpcError) -> ClientError:
    """The exception that a failed call becomes."""
    return _KINDS.get(error.code(), ServerError)(error.details() or error.code().name)
