"""Which requests are let in, and what became of each."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from services.errors import Overloaded, ServiceError, status_of
from services.gateway.deadline import Deadline
from services.gateway.metrics import Metrics

__all__ = ["Admission"]

_RETRY_AFTER = 0.5  # seconds; a guess at when one of the requests in flight will be done


class Admission:
    """Bounds the requests in flight, names each, and counts it by the code that it ended with."""

    def __init__(self, metrics: Metrics, max_requests: int) -> None:
        self._metrics, self._max_requests = metrics, max_requests
        self._in_flight = 0

    @contextmanager
    def request(self, rpc: str, deadline: Deadline) -> Iterator[str]:
        """Yields the request's id. Raises Overloaded where there is no room."""
        code = "INTERNAL"
        try:
            with self._counted():
                request_id = uuid.uuid4().hex
                structlog.contextvars.bind_contextvars(request_id=request_id)
                yield request_id
            code = "OK"
        except ServiceError as error:
            code = status_of(error).name
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "DEADLINE_EXCEEDED" if deadline.passed else "CANCELLED"
            raise
        finally:
            self._metrics.requests.labels(rpc, code).inc()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._in_flight >= self._max_requests:
            self._metrics.refused.labels("in_flight").inc()
            raise Overloaded(f"gateway: {self._in_flight} requests are in flight; try again in a moment", _RETRY_AFTER)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
