"""From the gateway's messages to the objects of the HTTP interface."""

import json
import math
import struct

import pytest
import safetensors.torch
import torch

from fsr.gateway.http.messages.chat_response import ChatResponses
from fsr.gateway.http.messages.facts import image_facts, usage_object
from fsr.gateway.http.messages.safetensors_file import compressed_images_file
from fsr.gateway.http.schemas.requests import ChatRequest
from fsr.gateway.http.schemas.responses import ChatAnswer, ChatChunk, CompressedImage
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import types_pb2

RECORD = RequestRecord(request_id="abc", model="tiny")
USAGE = pb.Usage(
    request_id="abc",
    prompt_tokens=28,
    completion_tokens=2,
    visual_tokens_in=144,
    visual_tokens_kept=16,
    kv_bytes_saved=2**53,
    prefill_flops_saved=1.5,
    cached_tokens=5,
    seconds={"ttft": 0.5},
    budget=types_pb2.Budget(tokens=16, spread=types_pb2.SPREAD_FREE),
    budget_chosen_by=types_pb2.CHOSEN_BY_POLICY,
    method="fsr",
    method_chosen_by=types_pb2.CHOSEN_BY_REQUEST,
)


def request(**fields) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": "x"}], **fields)


def token(text: bytes, logprob: float) -> types_pb2.TokenLogprob:
    return types_pb2.TokenLogprob(id=1, text=text, logprob=logprob)


def pieces():
    choice = types_pb2.TokenChoice(token=token(b"re", -0.5), top=[token(b"re", -0.5), token(b"\xe2\x80", -math.inf)])
    first = pb.GenerateResponse(
        text="re",
        token_choices=[choice],
        images=[types_pb2.CompressedImage(index=[3, 5], source_tokens=144, explanation={"stage": [0, 1]})],
    )
    return [first, pb.GenerateResponse(text="d", finish_reason=1, usage=USAGE)]


def test_whole_answer_has_text_usage_logprobs_and_explanation():
    answer = ChatResponses(RECORD, request(logprobs=True)).whole(pieces())
    ChatAnswer.model_validate(answer)
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("red", "stop")
    assert (answer["id"], answer["model"]) == ("chatcmpl-abc", "tiny")
    assert choice["logprobs"]["content"] == [
        {
            "token": "re",
            "logprob": -0.5,
            "bytes": [114, 101],
            "top_logprobs": [
                {"token": "re", "logprob": -0.5, "bytes": [114, 101]},
                {"token": "\ufffd", "logprob": -9999.0, "bytes": [0xE2, 0x80]},
            ],
        }
    ]
    assert answer["fsr"]["images"][0]["index"] == [3, 5]
    json.dumps(answer, allow_nan=False)


def test_logprobs_when_not_asked_for_are_null():
    answer = ChatResponses(RECORD, request()).whole(pieces())
    assert answer["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("usage_asked", [False, True])
def test_chunks_have_role_first_reason_last_and_usage_when_asked(usage_asked):
    made = ChatResponses(RECORD, request(stream_options={"include_usage": usage_asked}))
    chunks = [made.chunk(piece) for piece in pieces()]
    for chunk in chunks:
        ChatChunk.model_validate(chunk)
    first, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"] == {"role": "assistant", "content": "re"} and first["finish_reason"] is None
    assert last["delta"] == {"content": "d"} and last["finish_reason"] == "stop"
    assert "fsr" in chunks[0] and "fsr" not in chunks[1]
    assert all(("usage" in chunk) == usage_asked for chunk in chunks)
    end = made.usage_chunk(USAGE)
    ChatChunk.model_validate(end)
    assert end["choices"] == [] and end["usage"] == usage_object(USAGE)


def test_resumable_chunks_have_their_tokens_and_the_checkpoint_first():
    stream = [
        pb.GenerateResponse(token_ids=[4], fingerprint="f"),
        pb.GenerateResponse(text="red", token_ids=[5, 6]),
        pb.GenerateResponse(finish_reason=1, usage=USAGE),
    ]
    made = ChatResponses(RECORD, request(fsr={"resumable": True}))
    chunks = [made.chunk(piece) for piece in stream]
    for chunk in chunks:
        ChatChunk.model_validate(chunk)
    assert [chunk["fsr"] for chunk in chunks] == [
        {"token_ids": [4], "fingerprint": "f"},
        {"token_ids": [5, 6]},
        {"token_ids": []},
    ]
    assert made.whole(stream)["fsr"] == {"token_ids": [4, 5, 6], "fingerprint": "f"}
    ChatAnswer.model_validate(made.whole(stream))
    for options in ({}, {"resumable": False}):
        assert "fsr" not in ChatResponses(RECORD, request(fsr=options)).chunk(stream[0])


def test_usage_is_numbers_and_words():
    assert usage_object(pb.Usage())["fsr"]["budget"] is usage_object(pb.Usage())["fsr"]["method"] is None
    usage = usage_object(USAGE)
    assert (usage["total_tokens"], usage["prompt_tokens_details"]) == (30, {"cached_tokens": 5})
    ours = usage["fsr"]
    assert ours["kv_bytes_saved"] == 2**53 and isinstance(ours["kv_bytes_saved"], int)
    assert ours["seconds"] == {"ttft": 0.5}
    assert (ours["budget"], ours["spread"], ours["budget_chosen_by"]) == (16, "free", "policy")
    assert (ours["method"], ours["method_chosen_by"]) == ("fsr", "request")


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"keep_ratio": 0.5}, 0.5),
        ({"auto": types_pb2.AutoBudget()}, "auto"),
        ({"auto": types_pb2.AutoBudget(max_tokens=9)}, {"max_tokens": 9}),
    ],
)
def test_budget_in_usage_is_as_a_request_sends_it(budget, expected):
    assert usage_object(pb.Usage(budget=types_pb2.Budget(**budget)))["fsr"]["budget"] == expected


def compressed(dtype, data: bytes, scales: bytes = b"") -> types_pb2.CompressedImage:
    return types_pb2.CompressedImage(
        features=types_pb2.Tensor(dtype=dtype, shape=[2, 3], data=data, scales=scales),
        index=[4, 7],
        newlines=[1],
        positions=[0, 1, 2, 0, 3, 4],
        deepstack=[types_pb2.Tensor(dtype=dtype, shape=[2, 3], data=data, scales=scales)],
        source_tokens=9,
        grid=types_pb2.Grid(steps=1, rows=3, columns=3),
        explanation=types_pb2.Explanation(stage=[0, 1], merged_into=[-1, 4], priority=[0.5, 0.25], rows=3, columns=3),
    )


@pytest.mark.parametrize("features", [False, True])
def test_image_as_json_has_features_only_when_asked(features):
    image = compressed(types_pb2.DTYPE_BF16, bytes(range(12)))
    facts = image_facts(image, features=features)
    CompressedImage.model_validate(facts)
    assert facts["index"] == [4, 7] and facts["explanation"]["merged_into"] == [-1, 4]
    assert ("features" in facts) == ("positions" in facts) == features
    if features:
        assert facts["features"]["dtype"] == facts["deepstack"][0]["dtype"] == "bf16"


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_safetensors_file_is_read_by_the_library(name):
    tensor = torch.randn(2, 3).to(getattr(torch, name))
    short = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}[name]
    image = compressed(types_pb2.Dtype.Value(f"DTYPE_{short}"), tensor.view(torch.uint8).numpy().tobytes())
    tensors = safetensors.torch.load(compressed_images_file([image, image], {"fingerprint": "f"}))
    for i in range(2):
        assert torch.equal(tensors[f"images.{i}.features"], tensor)
        assert torch.equal(tensors[f"images.{i}.deepstack.0"], tensor)
        assert tensors[f"images.{i}.index"].tolist() == [4, 7]
        assert tensors[f"images.{i}.positions"].tolist() == [[0, 1, 2], [0, 3, 4]]
        assert tensors[f"images.{i}.merged_into"].tolist() == [-1, 4]
        assert tensors[f"images.{i}.priority"].tolist() == [0.5, 0.25]


def test_safetensors_file_of_int8_has_scales():
    image = compressed(types_pb2.DTYPE_INT8, bytes([1, 2, 3, 255, 254, 253]), struct.pack("<2f", 0.5, 2.0))
    tensors = safetensors.torch.load(compressed_images_file([image], {}))
    features = tensors["images.0.features"].float() * tensors["images.0.scales"].unsqueeze(1)
    assert features.tolist() == [[0.5, 1.0, 1.5], [-2.0, -4.0, -6.0]]
    assert tensors["images.0.deepstack.0.scales"].tolist() == [0.5, 2.0]
