"""Records spans, and sends them to a collector by OTLP over gRPC. Needs the extra `otel`.

The library's own variables apply, such as OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE and OTEL_BSP_SCHEDULE_DELAY:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from importlib import metadata
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fsr.common.telemetry.logs import adopt_logger
from fsr.common.telemetry.spans import NO_SPAN, Attributes, Headers, Span, Tracer

__all__ = ["OtlpTracer"]

_PROPAGATION = TraceContextTextMapPropagator()
_HEADERS = ("traceparent", "tracestate")
_MOST_OF_A_HEADER = 512  # characters, by the standard; what is longer would not fit into the metadata of our calls
_FLUSH_SECONDS = 3.0
# A server's own faults: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class OtlpTracer(Tracer):
    """Sends spans from a thread of its own. A collector that does not answer costs spans, never a request."""

    active = True

    def __init__(self, service: str, endpoint: str) -> None:
        """Raises errors of several kinds for variables of the library that are wrong."""
        adopt_logger("opentelemetry", "traces", logging.ERROR)
        # Like all that services send to each other, spans go there directly, whatever http_proxy says.
        direct: Any = (("grpc.enable_http_proxy", 0),)  # the library's type hint knows texts alone
        self._exporter = OTLPSpanExporter(endpoint, channel_options=direct)
        self._processor = BatchSpanProcessor(self._exporter)
        self._provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("fsr", metadata.version("fsr-gateway"))

    def request(self, name: str, headers: Headers, *, begins: bool = False) -> Span:
        carrier = {key: value for key, value in headers() if key in _HEADERS and len(value) <= _MOST_OF_A_HEADER}
        parent = _PROPAGATION.extract(carrier, Context())
        if not begins and not trace.get_current_span(parent).get_span_context().is_valid:
            return NO_SPAN
        span = self._tracer.start_span(name, parent, SpanKind.SERVER)
        return _RecordedSpan(self._tracer, span, _monotonic_epoch(), faults=_FAULTS)

    def close(self) -> None:
        flush = threading.Thread(target=self._processor.force_flush, daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)
        self._exporter.shutdown()  # ends a call that no collector answers
        self._provider.shutdown()


def _resource(service: str) -> Resource:
    """What the spans of this process have in common. The environment has the last word."""
    ours = {
        "service.name": f"fsr-{service}",
        "service.version": metadata.version("fsr-gateway"),
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create(ours | dict(OTELResourceDetector().detect().attributes))


class _RecordedSpan(Span):
    def __init__(self, tracer: trace.Tracer, span: trace.Span, epoch: int, faults: set[str] | None = None) -> None:
        """`epoch`: the zero of `time.monotonic`. `faults`: the codes that are its errors; None for all but OK."""
        self._tracer, self._span, self._epoch, self._faults = tracer, span, epoch, faults

    @property
    def log_fields(self) -> dict[str, str]:
        return {"trace_id": self._trace_id}

    @property
    def exemplar(self) -> dict[str, str] | None:
        return {"trace_id": self._trace_id} if self._span.is_recording() else None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        carrier: dict[str, str] = {}
        _PROPAGATION.inject(carrier, self._context)
        return tuple(carrier.items())

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, attributes)

    def stage(self, name: str, began: float, ended: float, attributes: Attributes | None = None) -> None:
        start, end = (self._epoch + round(moment * 1e9) for moment in (began, ended))
        self._tracer.start_span(name, self._context, attributes=attributes, start_time=start).end(end)

    def call(self, method: str, address: str) -> Span:
        host, _, port = address.rpartition(":")
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "server.address": host.strip("[]")}
        span = self._tracer.start_span(method, self._context, SpanKind.CLIENT, attributes)
        if port.isdecimal():
            span.set_attribute("server.port", int(port))
        return _RecordedSpan(self._tracer, span, self._epoch)

    def end(self, code: str = "OK", reason: str = "") -> None:
        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self._span.set_attribute("error.type", code)
            if self._faults is None or code in self._faults:
                self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()

    @property
    def _trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    @property
    def _context(self) -> Context:
        return trace.set_span_in_context(self._span, Context())


def _monotonic_epoch() -> int:
    """The zero of `time.monotonic`, in nanoseconds since 1970. Of three looks at both clocks the quickest is the right
    one: on a busy machine, the others may have been interrupted for a while."""
    looks = ((time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(3))
    before, now, _ = min(looks, key=lambda look: look[2] - look[0])
    return now - before
