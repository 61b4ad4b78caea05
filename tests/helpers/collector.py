"""A collector of traces: a gRPC server of OpenTelemetry's own service definition, which keeps what it gets."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from helpers.waiting import until

__all__ = ["TRACEPARENT", "TRACE_ID", "Collector", "Received", "assert_in_order", "collector"]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
_KINDS = {trace_pb2.Span.SPAN_KIND_SERVER: "server", trace_pb2.Span.SPAN_KIND_CLIENT: "client"}


@dataclass(kw_only=True)
class Received:
    """A span, its times in nanoseconds."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    start: int
    end: int
    error: str | None
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.address, self.headers = "", {}
        self._spans: list[Received] = []
        self._lock = threading.Lock()

    def Export(self, request, context):
        spans = [
            _received(span, _attributes(resource.resource.attributes)["service.name"])
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._spans += spans
            self.headers = dict(context.invocation_metadata())
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str = "") -> list[Received]:
        """In the order in which they began."""
        with self._lock:
            chosen = [span for span in self._spans if trace_id in ("", span.trace_id)]
        return sorted(chosen, key=lambda span: span.start)

    def wait_for(self, condition: Callable[[list[Received]], bool], trace_id: str = "") -> list[Received]:
        """The spans of a trace, as soon as they meet the condition."""
        until(lambda: condition(self.spans(trace_id)))
        return self.spans(trace_id)


@contextmanager
def collector() -> Iterator[Collector]:
    """One that runs; `address` is what services are given."""
    receiver, server = Collector(), grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()


def assert_in_order(spans: list[Received]) -> None:
    """Each span begins in its parent, and ends in it if both are of one service. A microsecond is for rounding."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent_id)
        if parent is not None:
            assert parent.start - 1000 <= span.start <= span.end, (span, parent)
            assert span.service != parent.service or span.end <= parent.end + 1000, (span, parent)


def _received(span: trace_pb2.Span, service: str) -> Received:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Received(
        service=service,
        name=span.name,
        kind=_KINDS.get(span.kind, "internal"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        error=span.status.message if failed else None,
        attributes=_attributes(span.attributes),
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
    )


def _attributes(pairs) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    if value.WhichOneof("value") == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, value.WhichOneof("value"))
