"""A call to the gateway, as admission sees it, by whichever interface it came."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import grpc

from fsr.common.wire.transport import REPLICAS
from fsr.gateway.callers.auth import authorization_in
from fsr.gateway.telemetry.request_record import RequestRecord

__all__ = ["Call", "GrpcCall"]


class Call(Protocol):
    """What admission asks of a call, and tells it."""

    interface: Literal["grpc", "http"]

    def authorization(self) -> str:
        """What the caller sent as `authorization`, or an empty text."""

    def headers(self) -> Iterable[tuple[str, str | bytes]]:
        """HTTP headers or gRPC metadata, with names in lower case."""

    def connection(self) -> str:
        """What tells the caller's connection from all others."""

    def time_remaining(self) -> float | None:
        """Seconds that the caller still waits; None if the call does not say."""

    def report(self, record: RequestRecord) -> None:
        """Called at the end of the call, also of a failed one, with what goes to the caller."""


class GrpcCall:
    """A call by gRPC. The caller gets the request's id as trailing metadata, and the addresses of the replicas if it
    sends the metadata `fsr-replicas`."""

    interface: Literal["grpc", "http"] = "grpc"

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context

    def authorization(self) -> str:
        return authorization_in(self._context.invocation_metadata())

    def headers(self) -> Iterable[tuple[str, str | bytes]]:
        return self._context.invocation_metadata() or ()

    def connection(self) -> str:
        return self._context.peer()

    def time_remaining(self) -> float | None:
        return self._context.time_remaining()

    def report(self, record: RequestRecord) -> None:
        replicas = any(name == REPLICAS for name, _ in self._context.invocation_metadata() or ())
        self._context.set_trailing_metadata(record.metadata(replicas))
