"""The life of a request in a decoder, with a real engine in this process."""

import time
from contextlib import aclosing

import pytest

from fsr.common.process.draining import Draining
from fsr.common.telemetry.tracing import traces
from fsr.decoder import pipeline
from fsr.decoder.admission import Admission
from fsr.decoder.engines.transformers.engine import TransformersEngine
from fsr.decoder.metrics import Metrics
from fsr.decoder.pipeline import DecodePipeline
from fsr.decoder.settings import DecoderSettings
from fsr.v1 import decoder_pb2, types_pb2
from fsr_core.backbones import load_decoder
from helpers.collector import collector

TEXT = types_pb2.Part(text="Is there a red star? " * 40)
QUESTION = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[TEXT])


@pytest.fixture(scope="module")
def model():
    return load_decoder("fsr-tiny")


@pytest.fixture
async def decoding(model):
    metrics = Metrics("tiny")
    engine = TransformersEngine(model, metrics, 1 << 24, prefill_tokens=16)
    admission = Admission(engine.kv_capacity, 8, 8, 30.0, metrics)
    yield DecodePipeline(model, engine, admission, Draining("draining"), metrics, DecoderSettings())
    await engine.close()


@pytest.mark.parametrize("slow", [False, True])
async def test_prompt_when_it_takes_long_then_messages_say_that_the_engine_is_at_work(
    decoding, model, monkeypatch, slow
):
    """The answer is the same, and its messages come after them."""
    monkeypatch.setattr(pipeline, "_PROGRESS_SECONDS", 0.05 if slow else 600)
    hook = model.model.register_forward_pre_hook(lambda *_: time.sleep(0.06))
    try:
        request = decoder_pb2.DecodeRequest(messages=[QUESTION], sampling=types_pb2.Sampling(max_tokens=4))
        request.sampling.ignore_eos = True
        async with aclosing(decoding.decode(request)) as messages:
            got = [message async for message in messages]
    finally:
        hook.remove()
    *silent, _, _, _, last = got
    assert not any(message.ByteSize() for message in silent) and all(message.token_ids for message in got[-4:])
    assert (last.finish_reason, last.stats.completion_tokens) == (decoder_pb2.FINISH_REASON_LENGTH, 4)
    assert len(silent) >= 3 if slow else not silent


async def test_trace_when_the_caller_leaves_has_the_stages_until_then(decoding):
    request = decoder_pb2.DecodeRequest(messages=[QUESTION], sampling=types_pb2.Sampling(max_tokens=200))
    request.sampling.ignore_eos = True
    with collector() as receiver:
        with traces("decoder", receiver.address) as tracer:
            async with aclosing(decoding.decode(request, tracer.request("decode", tuple, begins=True))) as messages:
                for _ in range(3):
                    await anext(messages)
        decode, *stages = receiver.spans()
    assert decode.attributes["rpc.response.status_code"] == "CANCELLED"
    assert decode.attributes["fsr.completion_tokens"] == 3
    assert [stage.name for stage in stages] == ["queue", "prefill", "decode"]
    assert all(stage.parent_id == decode.span_id and stage.start <= stage.end for stage in stages)
