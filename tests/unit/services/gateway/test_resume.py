"""Requests that resume an answer: what the replicas are asked, what the caller gets, and what is refused."""

from contextlib import aclosing

import grpc
import pytest

from fsr.common.errors import InvalidRequest, Mismatch
from fsr.gateway.callers.auth import ANYBODY
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.gateway.validation import check_generate
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, gateway_pb2, types_pb2

STOP = decoder_pb2.FINISH_REASON_STOP


class Replicas(encoder_pb2_grpc.EncoderServiceServicer, decoder_pb2_grpc.DecoderServiceServicer):
    """An encoder and a decoder of one checkpoint each; the decoder goes on with two tokens, or refuses with `error`."""

    def __init__(self, encoder="f", decoder="f", error=""):
        self.encoder, self.decoder, self.error = encoder, decoder, error
        self.decode_requests = []

    async def DescribeEncoder(self, request, context):
        return encoder_pb2.DescribeEncoderResponse(model={"model": "m", "fingerprint": self.encoder})

    async def DescribeDecoder(self, request, context):
        return decoder_pb2.DescribeDecoderResponse(model={"model": "m", "fingerprint": self.decoder})

    async def Encode(self, request, context):
        features = types_pb2.Tensor(dtype=types_pb2.DTYPE_FP32, shape=[1, 1], data=bytes(4))
        image = types_pb2.CompressedImage(features=features, index=[4], source_tokens=9)
        return encoder_pb2.EncodeResponse(fingerprint=self.encoder, images=[image] * len(request.images))

    async def Decode(self, request, context):
        self.decode_requests.append(request)
        if self.error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.error)
        yield decoder_pb2.DecodeResponse(text="a", token_ids=[7])
        stats = decoder_pb2.DecodeStats(completion_tokens=len(request.emitted_token_ids) + 2)
        yield decoder_pb2.DecodeResponse(text="b", token_ids=[8], finish_reason=STOP, stats=stats)


def request_of(resume=(), picture=True, fingerprint="f", **sampling):
    parts = [types_pb2.Part(image=0)] * picture + [types_pb2.Part(text="?")]
    return gateway_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)],
        images=[types_pb2.Image(data=b"x")] * picture,
        budget=types_pb2.Budget(tokens=1),
        sampling=types_pb2.Sampling(**sampling),
        resume=gateway_pb2.Resume(token_ids=resume, fingerprint=fingerprint),
    )


async def answer(pipeline, request):
    record = RequestRecord(request_id="r")
    async with aclosing(pipeline.generate(request, RequestContext(ANYBODY, Deadline(20), record))) as responses:
        return [response async for response in responses], record


@pytest.mark.parametrize("picture", [True, False])
async def test_decoder_gets_the_tokens_and_the_caller_only_what_comes_after(pipeline_of, picture):
    replicas = Replicas()
    responses, record = await answer(await pipeline_of(replicas), request_of([5, 6], picture))
    (asked,) = replicas.decode_requests
    assert list(asked.emitted_token_ids) == [5, 6] and asked.fingerprint == "f"
    assert [list(response.token_ids) for response in responses] == [[7], [8]]
    assert [response.fingerprint for response in responses] == ["f", ""]
    assert responses[-1].usage.completion_tokens == 4 and record.completion_tokens == 2


@pytest.mark.parametrize("picture", [True, False])
async def test_first_message_of_a_new_answer_names_the_checkpoint(pipeline_of, picture):
    responses, _ = await answer(await pipeline_of(Replicas()), request_of([], picture, fingerprint=""))
    assert [response.fingerprint for response in responses] == ["f", ""]


@pytest.mark.parametrize(
    ("replicas", "picture"),
    [(Replicas("new", "new"), False), (Replicas("new", "new"), True), (Replicas("new", "f"), True)],
)
async def test_answer_that_another_checkpoint_began_is_refused(pipeline_of, replicas, picture):
    says = "^resume.fingerprint: no replica of m has the checkpoint f any more; ask again without resume$"
    with pytest.raises(Mismatch, match=says):
        await answer(await pipeline_of(replicas), request_of([5], picture))
    assert replicas.decode_requests == []


async def test_answer_without_a_fingerprint_goes_on_with_any_checkpoint(pipeline_of):
    responses, _ = await answer(await pipeline_of(Replicas("new", "new")), request_of([5], fingerprint=""))
    assert responses[-1].finish_reason == STOP


async def test_decoders_error_about_the_tokens_names_the_callers_field(pipeline_of):
    replicas = Replicas(error="emitted_token_ids[1]: 6 is not in the model's vocabulary")
    with pytest.raises(InvalidRequest, match=r"^resume\.token_ids\[1\]: 6 is not in the model's vocabulary$"):
        await answer(await pipeline_of(replicas), request_of([5, 6]))


def test_resume_that_cannot_be_of_this_request_is_refused():
    request = request_of([1, 2, 3], max_tokens=2)
    says = r"^resume\.token_ids: 3 are more than sampling\.max_tokens, 2; send the request as it was"
    with pytest.raises(InvalidRequest, match=says):
        check_generate(request, GatewaySettings())
    check_generate(request_of([1, 2], max_tokens=2), GatewaySettings())
    with pytest.raises(InvalidRequest, match=r"^resume\.fingerprint: 600 characters are more than 512"):
        check_generate(request_of([1], fingerprint="f" * 600), GatewaySettings())
