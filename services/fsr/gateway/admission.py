"""Which requests the gateway takes, when, and how each of them ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog

from fsr.common.errors import Overloaded, ServiceError, status_of
from fsr.common.process.draining import Draining
from fsr.common.requests.retry_hints import RetryHints
from fsr.common.telemetry.logs import log_end
from fsr.common.telemetry.spans import NO_SPAN, NO_TRACES, Span, Tracer
from fsr.gateway.callers.auth import ApiKeys, Caller
from fsr.gateway.callers.slots import NoSlot, Slots
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.call import Call
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.gateway.telemetry.trace_attributes import record_attributes

__all__ = ["Admission"]

_RETRY_AFTER = 0.5  # seconds; a guess at when one of the requests in flight ends, while none has ended
_LONGEST_RETRY_AFTER = 30.0  # seconds
_REFUSALS = {
    "in_flight": "gateway: {} requests are in flight; try again in a moment",
    "key": "gateway: {} requests of this API key are in flight, the most it may have; wait for one of them to end",
    "connection": "gateway: {} requests of this connection are in flight, the most it may have; wait for one to end",
}
_SKEW = 0.05  # seconds; a caller hangs up at the deadline by its own clock, which is a little before ours


class Admission:
    """Gives requests their slots and ids and logs their ends. Counts all calls by the code of their end."""

    def __init__(self, keys: ApiKeys, metrics: Metrics, settings: GatewaySettings, tracer: Tracer = NO_TRACES) -> None:
        self._keys, self._metrics, self._settings, self._tracer = keys, metrics, settings, tracer
        self.draining = Draining("gateway: is shutting down; ask again, to reach another one", _RETRY_AFTER)
        self._slots = Slots(settings.max_requests, settings.max_waiting)
        self._hints = RetryHints(_RETRY_AFTER, _LONGEST_RETRY_AFTER)
        metrics.waiting.set_function(lambda: self._slots.waiting)

    @asynccontextmanager
    async def request(self, rpc: str, call: Call) -> AsyncIterator[RequestContext]:
        """Surrounds a request that takes a slot of the gateway. In the end its record goes to the caller and the log.

        Waits for the slot if need be. Raises InvalidRequest for a deadline that is too long, Overloaded if there is no
        slot in time, Expired, and what `call` raises.
        """
        record = RequestRecord(request_id=uuid.uuid4().hex)
        span = self._tracer.request(rpc, call.headers, begins=True)
        structlog.contextvars.bind_contextvars(request_id=record.request_id, **span.log_fields)
        with self.call(rpc, call, record, span) as caller:
            record.key_name = caller.name
            default, longest = self._settings.default_timeout_seconds, self._settings.max_timeout_seconds
            deadline = Deadline.after(call.time_remaining(), default, longest)
            async with self._slot(caller, call.connection(), deadline, record, span):
                yield RequestContext(caller, deadline, record, span)

    @contextmanager
    def call(self, rpc: str, call: Call, record: RequestRecord | None = None, span: Span = NO_SPAN) -> Iterator[Caller]:
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
                span.set(record_attributes(record, call.interface))
                span.end(code, **reason)

    @asynccontextmanager
    async def _slot(
        self, caller: Caller, connection: str, deadline: Deadline, record: RequestRecord, span: Span
    ) -> AsyncIterator[None]:
        settings, began = self._settings, time.monotonic()
        # Without keys all callers are one, which may have every slot.
        of_key = settings.most_requests_of_a_key if self._keys.required else settings.max_requests
        most = (caller.max_requests or of_key, settings.most_requests_of_a_connection)
        seconds = min(settings.max_wait_seconds, deadline.remaining())
        try:
            async with self._slots.slot(caller.salt, connection, most=most, weight=caller.weight, seconds=seconds):
                now = time.monotonic()
                span.stage("queue", began, now)
                record.wait_seconds = round(now - began, 4)
                self._metrics.wait.observe(record.wait_seconds, span.exemplar)
                try:
                    with self.draining.call():
                        self._metrics.in_flight.set(self.draining.in_flight)
                        yield
                finally:
                    self._metrics.in_flight.set(self.draining.in_flight)
                    others = self.draining.in_flight or self._slots.waiting
                    self._hints.ended(busy=self._slots.full and bool(others))
        except NoSlot as error:
            span.stage("queue", began, time.monotonic())
            deadline.remaining()
            self._metrics.refused.labels(error.reason).inc()
            message = _REFUSALS[error.reason].format(error.in_flight)
            raise Overloaded(message, self._hints.next(self._slots.waiting)) from error
