"""A trace through the whole system: gateway, an encoder replica in Ray Serve, decoder."""

import grpc
import pytest

from fsr.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2
from helpers.collector import TRACE_ID, TRACEPARENT, assert_in_order
from helpers.waiting import until

BUDGET, SOURCE = 16, 144
ENCODE, DECODE = "fsr.v1.EncoderService/Encode", "fsr.v1.DecoderService/Decode"
QUESTION = types_pb2.Message(
    role=types_pb2.ROLE_USER, parts=[types_pb2.Part(image=0), types_pb2.Part(text="Is there a red star?")]
)


@pytest.fixture(scope="module")
def usage(system, png):
    """Of an answer about a picture, whose caller has a trace."""
    request = gateway_pb2.GenerateRequest(
        images=[types_pb2.Image(data=png(900))],
        messages=[QUESTION],
        budget=types_pb2.Budget(tokens=BUDGET),
        sampling=types_pb2.Sampling(max_tokens=4),
    )
    with grpc.insecure_channel(system["gateway"]) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        return list(stub.Generate(request, metadata=(("traceparent", TRACEPARENT),), timeout=600))[-1].usage


@pytest.fixture(scope="module")
def spans(traces, usage):
    return traces.wait_for(lambda spans: len(spans) == 14, TRACE_ID)


def test_trace_goes_through_gateway_encoder_and_decoder(spans):
    chat = spans[0]
    assert chat.parent_id == TRACEPARENT[36:52] and chat.name.startswith("chat ")
    calls = {span.name: span for span in spans if span.kind == "client"}
    served = {span.name: span for span in spans if span.kind == "server" and span is not chat}
    assert calls.keys() == served.keys() == {ENCODE, DECODE}
    assert {name: span.service for name, span in served.items()} == {ENCODE: "fsr-encoder", DECODE: "fsr-decoder"}
    for name, call in calls.items():
        assert call.parent_id == chat.span_id and served[name].parent_id == call.span_id
        stages = [span.name for span in spans if span.parent_id == served[name].span_id]
        expected = {
            ENCODE: ["preprocess", "queue", "tower", "text", "compress"],
            DECODE: ["queue", "prefill", "decode"],
        }
        assert stages == expected[name]
    assert_in_order(spans)


def test_trace_says_what_was_kept_and_saved(spans, usage):
    attributes = spans[0].attributes
    assert attributes["fsr.visual_tokens_in"] == SOURCE and attributes["fsr.visual_tokens_kept"] == BUDGET
    assert attributes["fsr.visual_tokens_saved"] == SOURCE - BUDGET
    for name in ("kv_bytes_saved", "prefill_flops_saved", "wire_bytes_saved"):
        assert attributes[f"fsr.{name}"] == getattr(usage, name) > 0
    assert (attributes["fsr.budget"], attributes["fsr.method"]) == (str(BUDGET), "fsr")
    assert attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    (encode,) = (span for span in spans if span.service == "fsr-encoder" and span.name == ENCODE)
    assert encode.attributes["fsr.request_id"] == usage.request_id
    assert encode.attributes["fsr.visual_tokens_kept"] == BUDGET and encode.attributes["fsr.cached_images"] == 0
    (tower,) = (span for span in spans if span.name == "tower")
    assert tower.attributes["fsr.batch_size"] == 1


def test_logs_of_all_services_name_the_trace(system, usage):
    for service in ("gateway", "encoder", "decoder-*"):
        until(lambda: any(TRACE_ID in log.read_text() for log in system["logs"].glob(f"{service}.log")))  # noqa: B023
