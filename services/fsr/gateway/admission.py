"""Which requests the gateway takes, and how each of them ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from fsr.common.draining import Draining
from fsr.common.errors import Overloaded, ServiceError, status_of
from fsr.common.telemetry import log_end
from fsr.gateway.auth import ApiKeys, Caller
from fsr.gateway.call import Call
from fsr.gateway.deadline import Deadline
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_context import RequestContext
from fsr.gateway.request_record import RequestRecord
from fsr.gateway.settings import GatewaySettings

__all__ = ["Admission"]

_RETRY_AFTER = 0.5  # seconds; a guess at when one of the requests in flight ends
_SKEW = 0.05  # seconds; a caller hangs up at the deadline by its own clock, which is a little before ours


class Admission:
    """Bounds the requests in flight, gives each an id and logs its end. Counts all calls by the code of their end."""

    def __init__(self, keys: ApiKeys, metrics: Metrics, settings: GatewaySettings) -> None:
        self._keys, self._metrics, self._settings = keys, metrics, settings
        self.draining = Draining("gateway: is shutting down; ask again, to reach another one", _RETRY_AFTER)

    @contextmanager
    def request(self, rpc: str, call: Call) -> Iterator[RequestContext]:
        """Surrounds a request that takes room in the gateway. In the end its record goes to the caller and the log.

        Raises InvalidRequest for a deadline that is too long, Overloaded if too many requests are in flight, and what
        `call` raises.
        """
        record = RequestRecord(request_id=uuid.uuid4().hex)
        structlog.contextvars.bind_contextvars(request_id=record.request_id)
        with self.call(rpc, call, record) as caller:
            record.key_name = caller.name
            default, longest = self._settings.default_timeout_seconds, self._settings.max_timeout_seconds
            deadline = Deadline.after(call.time_remaining(), default, longest)
            with self._in_flight():
                yield RequestContext(caller, deadline, record)

    @contextmanager
    def call(self, rpc: str, call: Call, record: RequestRecord | None = None) -> Iterator[Caller]:
        """Surrounds any call; yields who makes it. Raises NotReady while the gateway drains, and Unauthenticated."""
        code, began, reason = "INTERNAL", time.monotonic(), {}
        try:
            self.draining.check()
            yield self._keys.caller_of(call.authorization())
            code = "OK"
        except ServiceError as error:
            code, reason = status_of(error).name, {"reason": str(error)}
            raise
        except (asyncio.CancelledError, GeneratorExit):
            remaining = call.time_remaining()
            code = "DEADLINE_EXCEEDED" if remaining is not None and remaining < _SKEW else "CANCELLED"
            raise
        finally:
            self._metrics.requests.labels(call.interface, rpc, code).inc()
            if record is not None:
                call.report(record)
                log_end(rpc, code, began, interface=call.interface, **record.log_fields(), **reason)

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
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
