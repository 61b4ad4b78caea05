"""Spans, held against what a collector gets of them by OTLP over gRPC."""

import socket
import sys
import time

import pytest

from fsr.common.telemetry import otlp
from fsr.common.telemetry.otlp import OtlpTracer
from fsr.common.telemetry.spans import NO_SPAN, NO_TRACES
from fsr.common.telemetry.tracing import check_collector, start_tracing, traces
from fsr.decoder.settings import DecoderSettings
from helpers.collector import TRACE_ID, TRACEPARENT, collector

ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (ENDPOINT, PROTOCOL, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def headers(**values):
    return values.items


def sent(trace):
    """What a collector gets of what `trace` does with a tracer."""
    with collector() as receiver:
        with traces("test", receiver.address) as tracer:
            trace(tracer)
        return receiver.spans()


def test_request_when_its_caller_has_a_trace_then_its_spans_are_part_of_it():
    def trace(tracer):
        span = tracer.request("ask", headers(traceparent=TRACEPARENT, tracestate="vendor=1"))
        now = time.monotonic()
        span.stage("queue", now - 2, now - 1, {"fsr.batch_size": 3})
        call = span.call("fsr.v1.EncoderService/Encode", "[::1]:20051")
        assert span.log_fields == span.exemplar == {"trace_id": TRACE_ID}
        carried.update(call.metadata)
        call.end("UNAVAILABLE", "is gone")
        span.event("retry", {"fsr.role": "encoder"})
        span.set({"gen_ai.usage.output_tokens": 4, "gen_ai.response.finish_reasons": ["stop"]})
        span.rename("chat m")
        span.end()

    carried = {}
    queue, ask, call = sent(trace)
    assert (ask.name, ask.kind, ask.trace_id, ask.parent_id) == ("chat m", "server", TRACE_ID, TRACEPARENT[36:52])
    assert (ask.service, ask.state, ask.error) == ("fsr-test", "vendor=1", None)
    assert ask.attributes == {
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ["stop"],
        "rpc.response.status_code": "OK",
    }
    assert ask.events == [("retry", {"fsr.role": "encoder"})]
    assert (queue.name, queue.kind, queue.attributes) == ("queue", "internal", {"fsr.batch_size": 3})
    assert abs(queue.end - queue.start - 1e9) < 1e6 and abs(time.time_ns() - queue.end) < 60e9
    assert (call.name, call.kind, call.error) == ("fsr.v1.EncoderService/Encode", "client", "is gone")
    assert (call.attributes["server.address"], call.attributes["server.port"]) == ("::1", 20051)
    assert call.attributes["error.type"] == "UNAVAILABLE"
    assert queue.parent_id == call.parent_id == ask.span_id
    assert carried == {"traceparent": f"00-{TRACE_ID}-{call.span_id}-01", "tracestate": "vendor=1"}


@pytest.mark.parametrize("wrong", ["", "hello", TRACEPARENT.replace(TRACE_ID, "0" * 32), TRACEPARENT + "-" + "a" * 600])
def test_request_when_its_trace_cannot_be_read_then_only_one_that_begins_has_one(wrong):
    def trace(tracer):
        given = headers(**{"traceparent": wrong} if wrong else {})
        assert tracer.request("decode", given) is NO_SPAN
        tracer.request("ask", given, begins=True).end()

    (span,) = sent(trace)
    assert span.parent_id == "" and span.trace_id not in (TRACE_ID, "0" * 32)


def test_state_of_a_trace_when_it_is_long_is_dropped():
    """It would not fit into the metadata of the calls, and each of them would fail."""

    def trace(tracer):
        long = ",".join(f"v{i}={'x' * 200}" for i in range(30))
        span = tracer.request("ask", headers(traceparent=TRACEPARENT, tracestate=long))
        assert dict(span.metadata).keys() == {"traceparent"}
        span.end()

    assert [span.trace_id for span in sent(trace)] == [TRACE_ID]


def test_request_when_its_caller_does_not_sample_then_only_logs_name_the_trace():
    def trace(tracer):
        span = tracer.request("ask", headers(traceparent=TRACEPARENT[:-2] + "00"))
        assert span.log_fields == {"trace_id": TRACE_ID} and span.exemplar is None
        assert dict(span.metadata)["traceparent"].endswith("-00")
        span.stage("queue", 0, 1)
        span.call("a/b", "c:1").end()
        span.end()

    assert sent(trace) == []


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "CANCELLED", "UNAVAILABLE", "INTERNAL"])
def test_request_when_it_fails_is_an_error_only_by_the_service_s_fault(code):
    (span,) = sent(lambda tracer: tracer.request("ask", headers(), begins=True).end(code, "why"))
    assert span.attributes["error.type"] == span.attributes["rpc.response.status_code"] == code
    assert span.error == ("why" if code in ("UNAVAILABLE", "INTERNAL") else None)


def test_service_when_the_environment_names_it_has_that_name(environment):
    environment.setenv("OTEL_SERVICE_NAME", "mine")
    (span,) = sent(lambda tracer: tracer.request("ask", headers(), begins=True).end())
    assert span.service == "mine"


def test_traces_when_no_collector_is_named_are_off(environment):
    assert start_tracing("test") is NO_TRACES
    environment.setenv(ENDPOINT, "")
    assert start_tracing("test", "") is NO_TRACES
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ENDPOINT, NOWHERE)
            patch.setenv(name, value)
            assert start_tracing("test") is NO_TRACES


def test_traces_when_they_are_off_cost_no_look_at_the_request():
    def never():
        raise AssertionError

    span = NO_TRACES.request("ask", never, begins=True)
    assert span is span.call("a/b", "c:1") is NO_SPAN
    assert (span.metadata, span.exemplar, span.log_fields) == ((), None, {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({ENDPOINT: "collector:4317"}, rf"^{ENDPOINT}: 'collector:4317' is no address of a collector; write http://"),
        ({ENDPOINT: NOWHERE, PROTOCOL: "http/protobuf"}, rf"^{PROTOCOL}: 'http/protobuf' is not offered; set grpc"),
        ({ENDPOINT: NOWHERE, "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, rf"^{ENDPOINT}: traces cannot be sent \(.*soon"),
    ],
)
def test_environment_when_it_is_wrong_is_one_line_that_names_the_variable(environment, variables, message):
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        start_tracing("test")
    with pytest.raises(SystemExit, match=message.replace("^", "^error: ")), traces("test", None):
        pass


def test_traces_without_the_extra_are_one_line_that_says_what_to_install(environment):
    environment.setitem(sys.modules, "fsr.common.telemetry.otlp", None)
    with pytest.raises(
        ValueError, match=r"^--otlp-endpoint: traces need the extra otel .*pip install 'fsr-gateway\[otel\]'"
    ):
        start_tracing("test", NOWHERE)


@pytest.mark.parametrize("address", ["collector:4317", "http://", "grpc://c:1", "http://c:4317/v1/traces"])
def test_option_when_it_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="is no address of a collector; write http://host:4317"):
        check_collector(address)
    with pytest.raises(SystemExit, match=r"^error: --otlp-endpoint: .* is no address of a collector"):
        DecoderSettings.load(["--otlp-endpoint", address])


def test_end_when_no_collector_answers_is_soon(environment):
    """One that takes connections and says nothing."""
    environment.setattr(otlp, "_FLUSH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = OtlpTracer("test", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracer.request("ask", headers(), begins=True).end()
        began = time.monotonic()
        tracer.close()
        assert time.monotonic() - began < 8  # an export alone is given ten seconds
