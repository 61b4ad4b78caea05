"""Traces of a real gateway and real decoders, as a collector gets them by OTLP over gRPC."""

import http.client
import json
import signal
import urllib.request

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from fsr.client import Client
from fsr.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2
from helpers.collector import TRACE_ID, TRACEPARENT, assert_in_order, collector
from helpers.waiting import until

TOKENS = 12
DECODE = "fsr.v1.DecoderService/Decode"
HELLO = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="Hello")])


def parent_of(trace_id):
    return TRACEPARENT.replace(TRACE_ID, trace_id)


@pytest.fixture(scope="module")
def receiver():
    with collector() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=vision")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield receiver


@pytest.fixture(scope="module")
def services(receiver, spawn, served_model, free_ports):
    """A gateway and two decoders, which send their traces to the receiver."""
    decoders = [spawn("decoder", *served_model) for _ in range(2)]
    addresses = ",".join(decoder.address for decoder in decoders)
    port = free_ports()
    options = ("--http-port", str(port), "--discovery-seconds", "0.3", "--encoders", "127.0.0.1:9")
    gateway = spawn("gateway", *options, "--decoders", addresses)
    for decoder in decoders:
        decoder.wait_until_serving()
    gateway.wait_until_it_says('"traces": true')  # it serves
    until(lambda: gateway.metric("fsr_replicas_ready", role="decoder") == 2)
    return {"gateway": gateway, "decoders": decoders, "http": f"127.0.0.1:{port}"}


def ask(gateway, trace_id, **sampling):
    """Asks by gRPC as a caller that has a trace of its own; returns the usage."""
    request = gateway_pb2.GenerateRequest(messages=[HELLO], sampling=types_pb2.Sampling(ignore_eos=True, **sampling))
    with grpc.insecure_channel(gateway.address) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        metadata = (("traceparent", parent_of(trace_id)), ("tracestate", "vendor=1"))
        return list(stub.Generate(request, metadata=metadata, timeout=600))[-1].usage


def log_of(service, trace_id):
    lines = (json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line.get("trace_id") == trace_id]


def test_trace_when_the_caller_has_one_goes_through_gateway_and_decoder(receiver, services):
    usage = ask(services["gateway"], TRACE_ID, max_tokens=TOKENS, temperature=0.7, top_k=5, seed=3, stop=["secret"])
    spans = receiver.wait_for(lambda spans: len(spans) == 7, TRACE_ID)
    chat, wait, call, decode, *stages = spans
    model = chat.attributes["gen_ai.request.model"]
    assert (chat.service, chat.kind, chat.name) == ("fsr-gateway", "server", f"chat {model}")
    assert chat.parent_id == TRACEPARENT[36:52] and {span.state for span in spans} == {"vendor=1"}
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fsr",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": TOKENS,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_k": 5,
        "gen_ai.request.seed": "3",
        "gen_ai.response.id": usage.request_id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.time_to_first_chunk": usage.seconds["ttft"],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.output_tokens": TOKENS,
        "fsr.interface": "grpc",
        "fsr.failovers": 0,
        "fsr.retries": 0,
        "fsr.kv_bytes_saved": 0,
        "fsr.prefill_flops_saved": 0.0,
        "fsr.wire_bytes_saved": 0,
        "fsr.cached_images": 0,
        "rpc.response.status_code": "OK",
    }
    assert (wait.name, wait.parent_id) == ("queue", chat.span_id)
    assert (call.name, call.kind, call.parent_id) == (DECODE, "client", chat.span_id)
    port = str(call.attributes["server.port"])
    assert any(decoder.address.endswith(port) for decoder in services["decoders"])
    assert (decode.service, decode.name, decode.kind) == ("fsr-decoder", DECODE, "server")
    assert decode.parent_id == call.span_id and decode.attributes["fsr.completion_tokens"] == TOKENS
    assert [span.name for span in stages] == ["queue", "prefill", "decode"]
    assert_in_order(spans)
    for span in stages:
        assert span.parent_id == decode.span_id
    assert receiver.headers["x-team"] == "vision"


def test_logs_and_histograms_lead_to_the_trace(receiver, services):
    trace_id = "1" * 32
    usage = ask(services["gateway"], trace_id, max_tokens=TOKENS)
    receiver.wait_for(lambda spans: len(spans) == 7, trace_id)
    everyone = [services["gateway"], *services["decoders"]]
    lines = [line for service in everyone for line in log_of(service, trace_id)]
    assert {(line["service"], line["event"]) for line in lines} == {("gateway", "answered"), ("decoder", "answered")}
    assert {line["request_id"] for line in lines} == {usage.request_id}
    named = {
        sample.name
        for service in everyone
        for family in text_string_to_metric_families(page(service, "application/openmetrics-text; version=1.0.0"))
        for sample in family.samples
        if sample.exemplar is not None and sample.exemplar.labels == {"trace_id": trace_id}
    }
    assert named == {
        f"fsr_{name}_seconds_bucket"
        for name in (
            "stage",
            "admission_wait",
            "time_per_output_token",
            "decoder_queue",
            "decoder_prefill",
            "decoder_decode",
            "decoder_time_per_output_token",
        )
    }
    assert trace_id not in page(services["gateway"], "text/plain")


def page(service, accept):
    request = urllib.request.Request(f"http://{service.metrics}/metrics", headers={"accept": accept})
    return urllib.request.urlopen(request).read().decode()


def post(address, trace_id, **body):
    connection = http.client.HTTPConnection(address, timeout=600)
    headers = {"content-type": "application/json", "traceparent": parent_of(trace_id)}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def test_trace_when_the_caller_comes_by_http_is_the_same(receiver, services):
    messages = [{"role": "user", "content": "Hello"}]
    assert post(services["http"], "2" * 32, messages=messages, max_tokens=4) == 200
    spans = receiver.wait_for(lambda spans: len(spans) == 8, "2" * 32)
    assert [span.name for span in spans][1:4] == ["queue", "pictures", DECODE]
    assert spans[0].attributes["fsr.interface"] == "http" and spans[0].parent_id == TRACEPARENT[36:52]


def test_trace_of_a_request_that_is_wrong_says_why_and_is_no_error(receiver, services):
    assert post(services["http"], "3" * 32, messages=[], max_tokens=4) == 400
    chat, _, _ = receiver.wait_for(lambda spans: len(spans) == 3, "3" * 32)
    assert chat.attributes["error.type"] == "INVALID_ARGUMENT" and chat.error is None


def test_request_without_a_trace_begins_one(receiver, services):
    before = {span.trace_id for span in receiver.spans()}
    with Client(services["gateway"].address) as client:
        client.ask([], "Hello", max_tokens=2)
    spans = receiver.wait_for(lambda spans: len({span.trace_id for span in spans} - before) == 1)
    (new,) = {span.trace_id for span in spans} - before
    chat, *_ = receiver.wait_for(lambda spans: len(spans) == 7, new)
    assert chat.parent_id == ""


def test_failover_is_an_event_and_both_decoders_are_in_the_trace(receiver, services):
    """The first one is killed in the middle of its answer. Its own spans are lost with it."""
    trace_id, gateway, killed = "4" * 32, services["gateway"], []

    def busy():
        return next((one for one in services["decoders"] if one.metric("fsr_decoder_running_requests")), None)

    request = gateway_pb2.GenerateRequest(
        messages=[HELLO], sampling=types_pb2.Sampling(max_tokens=900, ignore_eos=True)
    )
    with grpc.insecure_channel(gateway.address) as channel:
        metadata = (("traceparent", parent_of(trace_id)),)
        answer = gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request, metadata=metadata, timeout=600)
        messages = [next(answer)]
        killed.append(busy())
        killed[0].end(signal.SIGKILL)
        messages += answer
    usage = messages[-1].usage
    assert usage.failovers == 1
    spans = receiver.wait_for(
        lambda spans: {"decode", f"chat {chat_model(spans)}"} <= {s.name for s in spans}, trace_id
    )
    chat = spans[0]
    first, second = (span for span in spans if span.name == DECODE and span.kind == "client")
    assert first.attributes["error.type"] == "UNAVAILABLE" and "a replica failed" in first.error
    assert second.attributes["rpc.response.status_code"] == "OK"
    assert killed[0].address.endswith(str(first.attributes["server.port"]))
    events = dict(chat.events)
    assert len(chat.events) == usage.failovers + usage.retries and set(events) == {"retry", "failover"}
    survivor = next(one for one in services["decoders"] if one not in killed)
    assert events["retry"]["fsr.replica"] == events["failover"]["fsr.replica"] == survivor.address
    assert events["failover"]["fsr.emitted_tokens"] > 0 and chat.attributes["fsr.failovers"] == 1
    (decode,) = (span for span in spans if span.name == DECODE and span.kind == "server")
    assert decode.parent_id == second.span_id


def chat_model(spans):
    return next((span.attributes["gen_ai.request.model"] for span in spans if span.name.startswith("chat ")), None)
