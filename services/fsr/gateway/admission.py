"""Which requests are let in, and what became of each."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import structlog

from fsr.common.draining import Draining
from fsr.common.errors import Overloaded, ServiceError, status_of
from fsr.common.telemetry import log_end
from fsr.gateway.deadline import Deadline
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.settings import GatewaySettings

__all__ = ["Admission"]

_RETRY_AFTER = 0.5  # seconds; a guess at when one of the requests in flight will be done
_SKEW = 0.05  # seconds; a caller hangs up when its deadline has passed by its own clock, which is a little before ours


class Admission:
    """Bounds the requests in flight, names each and logs its end; counts all calls by the code that they ended with."""

    def __init__(self, metrics: Metrics, settings: GatewaySettings) -> None:
        self._metrics, self._settings = metrics, settings
        self.draining = Draining("gateway: is shutting down; ask again, to reach another one", _RETRY_AFTER)

    @contextmanager
    def request(self, rpc: str, context: grpc.aio.ServicerContext) -> Iterator[tuple[Trail, Deadline]]:
        """Yields the request's trail, which the caller and the log are told in the end, and its deadline. Raises
        InvalidRequest for a deadline beyond reason, Overloaded where there is no room."""
        trail = Trail(uuid.uuid4().hex)
        structlog.contextvars.bind_contextvars(request_id=trail.request_id)
        with self.counting(rpc, context, trail):
            deadline = Deadline.of(context, self._settings.default_timeout_seconds, self._settings.max_timeout_seconds)
            with self._in_room():
                yield trail, deadline

    @contextmanager
    def counting(self, rpc: str, context: grpc.aio.ServicerContext, trail: Trail | None = None) -> Iterator[None]:
        """For the length of a call, whether it takes room, and leaves a trail, or not. Raises NotReady
        while the gateway drains."""
        code, began, reason = "INTERNAL", time.monotonic(), {}
        try:
            self.draining.check()
            yield
            code = "OK"
        except ServiceError as error:
            code, reason = status_of(error).name, {"reason": str(error)}
            raise
        except (asyncio.CancelledError, GeneratorExit):
            left = context.time_remaining()
            code = "DEADLINE_EXCEEDED" if left is not None and left < _SKEW else "CANCELLED"
            raise
        finally:
            self._metrics.requests.labels(rpc, code).inc()
            if trail is not None:
                context.set_trailing_metadata(trail.metadata())
                log_end(rpc, code, began, **trail.facts(), **reason)

    @contextmanager
    def _in_room(self) -> Iterator[None]:
        in_flight = self.draining.in_flight
        if in_flight >= self._settings.max_requests:
            self._metrics.refused.labels("in_flight").inc()
            raise Overloaded(f"gateway: {in_flight} requests are in flight; try again in a moment", _RETRY_AFTER)
        try:
            with self.draining.call():
                self._metrics.in_flight.set(self.draining.in_flight)
                yield
        finally:
            self._metrics.in_flight.set(self.draining.in_flight)
