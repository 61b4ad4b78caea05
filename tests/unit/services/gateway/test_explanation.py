"""Explanations of an answer's images: the caller gets them once, in its first message, and decoders never."""

import asyncio
from contextlib import aclosing

import grpc
import pytest

from fsr.gateway.callers.auth import ANYBODY, Caller
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, gateway_pb2, types_pb2

MODEL = types_pb2.ModelDescription(model="m", fingerprint="f")
EXPLANATION = types_pb2.Explanation(stage=[0], merged_into=[-1] * 9, priority=[0.5] * 9, rows=3, columns=3)


class Replicas(encoder_pb2_grpc.EncoderServiceServicer, decoder_pb2_grpc.DecoderServiceServicer):
    """An encoder, and a decoder that fails its first call after `messages`; it keeps what it was asked."""

    def __init__(self, *messages):
        self.messages, self.encode_requests, self.decode_requests = messages, [], []

    async def DescribeEncoder(self, request, context):
        return encoder_pb2.DescribeEncoderResponse(model=MODEL)

    async def DescribeDecoder(self, request, context):
        load = decoder_pb2.DecoderLoad(kv_bytes_capacity=100, kv_bytes_free=100)
        return decoder_pb2.DescribeDecoderResponse(model=MODEL, load=load)

    async def Encode(self, request, context):
        self.encode_requests.append(request)
        features = types_pb2.Tensor(dtype=types_pb2.DTYPE_FP32, shape=[1, 1], data=bytes(4))
        explanation = EXPLANATION if request.explain else None
        image = types_pb2.CompressedImage(features=features, index=[4], source_tokens=9, explanation=explanation)
        return encoder_pb2.EncodeResponse(fingerprint="f", images=[image] * len(request.images))

    async def Decode(self, request, context):
        self.decode_requests.append(request)
        if len(self.decode_requests) == 1:
            for message in self.messages:
                yield message
            await context.abort(grpc.StatusCode.UNAVAILABLE, "out of order")
        yield decoder_pb2.DecodeResponse(token_ids=[7])  # its text comes with the next one
        yield decoder_pb2.DecodeResponse(text="star", token_ids=[8], finish_reason=decoder_pb2.FINISH_REASON_STOP)


async def answer(pipeline, caller=ANYBODY, **options):
    parts = [types_pb2.Part(image=0), types_pb2.Part(image=1), types_pb2.Part(text="?")]
    request = gateway_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)],
        images=[types_pb2.Image(data=b"x"), types_pb2.Image(data=b"y")],
        budget=types_pb2.Budget(tokens=1),
        **options,
    )
    context = RequestContext(caller, Deadline(20), RequestRecord(request_id="r"))
    async with aclosing(pipeline.generate(request, context)) as responses:
        return [response async for response in responses]


@pytest.mark.parametrize(
    "before",
    [[], [decoder_pb2.DecodeResponse(token_ids=[5])], [decoder_pb2.DecodeResponse(text="a", token_ids=[5])]],
    ids=["none", "a token", "text"],
)
async def test_explanation_when_an_answer_moves_to_another_decoder_comes_once_and_first(pipeline_of, before):
    replicas = Replicas(*before)
    responses = await answer(await pipeline_of(replicas), explain=True)
    assert len(replicas.decode_requests) == 2 and responses[-1].usage.failovers == 1
    first, *others = responses
    assert len(first.images) == 2 and not any(response.images for response in others)
    for image in first.images:
        assert (list(image.index), image.source_tokens, image.explanation) == ([4], 9, EXPLANATION)
        assert not image.HasField("features")
    for request in replicas.decode_requests:
        assert len(request.images) == 2 and all(image.HasField("features") for image in request.images)
        assert not any(image.HasField("explanation") for image in request.images)


async def test_explanation_when_nobody_asked_is_neither_made_nor_sent(pipeline_of):
    replicas = Replicas()
    responses = await answer(await pipeline_of(replicas))
    assert not any(response.images for response in responses)
    assert [request.explain for request in replicas.encode_requests] == [False]


async def test_explanation_when_a_canary_asks_again_is_left_out(pipeline_of):
    replicas = Replicas()
    pipeline = await pipeline_of(replicas, canary_share=1.0)
    await answer(pipeline, explain=True)
    async with asyncio.timeout(30):
        while len(replicas.decode_requests) < 3:
            await asyncio.sleep(0.01)
    assert [request.explain for request in replicas.encode_requests] == [True, False]
    assert not any(image.HasField("explanation") for image in replicas.decode_requests[-1].images)


async def test_caches_when_callers_have_keys_are_apart_in_both_replicas(pipeline_of):
    replicas = Replicas()
    pipeline = await pipeline_of(replicas)
    for salt in ("a", "b"):
        await answer(pipeline, Caller(salt=salt))
    assert [request.cache_salt for request in replicas.encode_requests] == ["a", "b"]
    assert {request.cache_salt for request in replicas.decode_requests} == {"a", "b"}


async def test_log_probabilities_when_a_canary_asks_again_are_left_out(pipeline_of):
    replicas = Replicas()
    sampling = types_pb2.Sampling(logprobs=True, top_logprobs=2)
    await answer(await pipeline_of(replicas, canary_share=1.0), sampling=sampling)
    async with asyncio.timeout(30):
        while len(replicas.decode_requests) < 3:
            await asyncio.sleep(0.01)
    asked = [(request.sampling.logprobs, request.sampling.top_logprobs) for request in replicas.decode_requests]
    assert asked[0] == (True, 2) and asked[-1] == (False, 0)
