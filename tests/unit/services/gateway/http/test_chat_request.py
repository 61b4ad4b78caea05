"""From the JSON of a chat request to the gateway's message: every field, and every refusal by its name."""

import base64
import json
import time

import pytest

from fsr.common.errors import InvalidRequest
from fsr.gateway.http.field_names import FieldNames
from fsr.gateway.http.messages.chat_request import chat_request, generate_request
from fsr.gateway.http.pictures.pictures import Pictures
from fsr.gateway.http.pictures.remote import RemotePictures
from fsr.gateway.http.schemas.body import count_marks, max_marks, max_values
from fsr.gateway.http.schemas.unsupported import REQUEST, WITHOUT_EFFECT
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.v1 import types_pb2

SETTINGS = GatewaySettings(max_images=3, max_image_bytes=100)
MOST = 10_000  # values of a body
HELLO = [{"role": "user", "content": "hello"}]


def uri(file: bytes = b"picture", kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def picture(url: str, **more):
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


async def translated(body, names=None):
    raw = json.dumps({"messages": HELLO} | body).encode()
    pictures = Pictures(SETTINGS, RemotePictures(SETTINGS))
    return await generate_request(chat_request(raw, MOST), pictures, names or FieldNames(), Deadline(60))


async def refusal(body) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await translated(body)
    return str(caught.value)


async def test_conversation_with_pictures_keeps_its_order():
    turns = [
        {"role": "system", "content": "be short"},
        {"role": "developer", "content": [{"type": "text", "text": "in English"}]},
        *user(picture(uri(b"one")), {"type": "text", "text": "first?"}, picture(uri(b"two", "IMAGE/JPEG"))),
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": [], "annotations": None},
        *user({"type": "text", "text": "third?"}, picture(uri(b"three", "image/webp"), detail="high")),
    ]
    names = FieldNames()
    request = await translated({"messages": turns}, names)
    assert [image.data for image in request.images] == [b"one", b"two", b"three"]
    told = [(turn.role, [part.text or part.image for part in turn.parts]) for turn in request.messages]
    system, asks, answers = types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT
    assert told == [
        (system, ["be short"]),
        (system, ["in English"]),
        (asks, [0, "first?", 1]),
        (answers, ["yes"]),
        (asks, ["third?", 2]),
    ]
    assert names.images[2] == "messages[4].content[1].image_url.url"


async def test_sampling_fields_arrive():
    body = {
        "max_completion_tokens": 7,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 4,
        "repetition_penalty": 1.5,
        "seed": 3,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 2,
        "ignore_eos": True,
    }
    sampling = (await translated(body)).sampling
    assert sampling == types_pb2.Sampling(
        max_tokens=7,
        temperature=1,
        top_p=0.5,
        top_k=4,
        repetition_penalty=1.5,
        seed=3,
        stop=["a", "b"],
        logprobs=True,
        top_logprobs=2,
        ignore_eos=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"temperature": 0, "top_k": -1, "stop": None, "max_tokens": None, "stream": None, "logprobs": False},
        {"temperature": 0.0, "top_k": 0, "stop": [], "top_logprobs": 0, "fsr": None, "ignore_eos": None},
        {"n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "presence_penalty": 0.0},
    ],
)
async def test_default_when_fields_are_off_or_null_is_greedy(body):
    request = await translated(body)
    assert request.sampling == types_pb2.Sampling() and request.budget.WhichOneof("kind") is None
    assert request.method.name == "" and not request.explain


async def test_seed_when_zero_or_negative_is_a_seed():
    assert (await translated({"seed": 0})).sampling.HasField("seed")
    assert (await translated({"seed": -1})).sampling.seed == 2**64 - 1


async def test_stop_when_it_is_one_text_is_a_list_of_one():
    assert list((await translated({"stop": "x"})).sampling.stop) == ["x"]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (64, {"tokens": 64}),
        (0.11, {"keep_ratio": 0.11}),
        (1.0, {"keep_ratio": 1.0}),
        ("all", {"keep_ratio": 1.0}),
        ("auto", {"auto": types_pb2.AutoBudget()}),
        ({"max_tokens": 9, "radius": 0.0}, {"auto": types_pb2.AutoBudget(max_tokens=9, radius=0)}),
    ],
)
async def test_budget_forms(budget, expected):
    request = await translated({"fsr": {"budget": budget, "spread": "free"}})
    assert request.budget == types_pb2.Budget(spread=types_pb2.SPREAD_FREE, **expected)


async def test_other_options_of_ours_arrive():
    options = {"rho": 0.7, "centre_keys": True, "sizes": [1, 2]}
    fsr = {"method": "visionzip", "options": options, "explain": True, "wire_dtype": "int8", "timeout": 3}
    request = await translated({"fsr": fsr, "model": "m"})
    assert (request.model, request.method.name, request.explain) == ("m", "visionzip", True)
    assert dict(request.method.options)["rho"] == 0.7 and request.wire_dtype == types_pb2.DTYPE_INT8


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": 5}, "messages: should be a valid list"),
        ({"messages": [5]}, "messages[0]: should be a JSON object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: is missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: 'tool' is not supported; use 'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: is missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: should be a valid string"),
        ({"messages": [{"role": "user", "content": "x", "name": "joe"}]}, "messages[0].name: is not supported; chat"),
        ({"messages": [{"role": "assistant", "content": [picture(uri())]}]}, "messages[0].content[0].type: should be"),
        ({"messages": user({"type": "text"})}, "messages[0].content[0].text: is missing"),
        ({"messages": user({"type": "text", "text": "x", "y": 1})}, "messages[0].content[0].y: is unknown"),
        ({"messages": user({"type": "input_audio"})}, "messages[0].content[0].type: 'input_audio' is not supported"),
        ({"messages": user(picture(uri(), detail="low"))}, "messages[0].content[0].image_url.detail: should be"),
        ({"max_tokens": True}, "max_tokens: should be a valid integer"),
        ({"max_tokens": "3"}, "max_tokens: should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: 0 is no length of an answer; ask for at least 1"),
        ({"max_completion_tokens": 2**40}, "max_completion_tokens: 1099511627776 is no length"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens: differs from max_completion_tokens"),
        ({"temperature": False}, "temperature: should be a valid number"),
        ({"top_p": 0}, "top_p: must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be above 0"),
        ({"top_k": -2}, "top_k: -2 is no number of tokens"),
        ({"seed": 2**64}, "seed: does not fit"),
        ({"top_logprobs": 3}, "top_logprobs: needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: 21 is outside 0..20"),
        ({"stream": "yes"}, "stream: should be a valid boolean"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage: should be a valid boolean"),
        ({"temprature": 1}, "temprature: is unknown; check its spelling"),
        ({"fsr": []}, "fsr: should be a JSON object"),
        ({"fsr": {"bugdet": 3}}, "fsr.bugdet: is unknown"),
        ({"fsr": {"budget": True}}, "fsr.budget: is no budget"),
        ({"fsr": {"budget": "64"}}, "fsr.budget: is no budget"),
        ({"fsr": {"budget": 2**31}}, "fsr.budget: is out of range"),
        ({"fsr": {"budget": {"min": 3}}}, "fsr.budget.min: is unknown"),
        ({"fsr": {"options": {"rho": {"a": 1}}}}, "fsr.options.rho: is no value of an option"),
        ({"fsr": {"options": {"rho": 10**400}}}, "fsr.options.rho: is out of range"),
        ({"fsr": {"timeout": 0}}, "fsr.timeout: should be greater than 0"),
        ({"tools": [{}]}, "tools: is not supported; this service calls no tools"),
        ({"n": 2}, "n: is not supported; send one request for each answer"),
        ({"n": True}, "n: is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format: is not supported"),
        ({"store": True}, "store: is not supported"),
    ],
)
async def test_wrong_field_when_sent_is_named_with_a_remedy(body, says):
    assert (await refusal(body)).startswith(says)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.org/a.png", "this gateway fetches no pictures"),
        ("picture.png", "is no data URI"),
        ("data:image/png,abc", "is a data URI without base64"),
        ("data:image/gif;base64,AAAA", "'image/gif' is not supported; send image/jpeg, image/png, image/webp"),
        ("data:;base64,AAAA", "'' is not supported"),
        ("data:image/png;base64,A A=", "is no base64"),
        ("data:image/png;base64,AAA", "is no base64"),
        ("data:image/png;base64,äöü=", "is no base64"),
        ("data:" + "x" * 1000, "is no data URI"),
        (uri(b"x" * 101), "101 bytes exceed 100; scale it down"),
    ],
)
async def test_picture_when_it_is_no_data_uri_of_a_picture_is_refused(url, says):
    assert (await refusal({"messages": user(picture(url))})).startswith(f"messages[0].content[0].image_url.url: {says}")


async def test_pictures_when_too_many_are_refused_before_any_is_decoded():
    parts = [picture(uri())] * 3 + [picture("not even a URI")]
    says = await refusal({"messages": user(*parts)})
    assert says == "messages[0].content[3].image_url.url: is image number 4, one more than 3; send fewer"


async def test_large_picture_is_decoded_as_a_whole():
    file, settings = bytes(range(256)) * 3000, GatewaySettings()
    pictures = Pictures(settings, RemotePictures(settings))
    body = {"messages": user(picture(uri(file)))}
    request = await generate_request(
        chat_request(json.dumps(body).encode(), MOST), pictures, FieldNames(), Deadline(60)
    )
    assert request.images[0].data == file
    spoilt = uri(file)
    at = len("data:image/png;base64,") + 2**18
    with pytest.raises(InvalidRequest, match=r"is no base64 \(Padding before the end\)"):
        body = {"messages": user(picture(spoilt[: at - 1] + "=" + spoilt[at:]))}
        await generate_request(chat_request(json.dumps(body).encode(), MOST), pictures, FieldNames(), Deadline(60))


async def test_picture_of_the_largest_size_is_taken():
    request = await translated({"messages": user(picture(uri(b"x" * 100)))})
    assert len(request.images[0].data) == 100


async def test_resume_is_that_of_the_message():
    resume = {"token_ids": [5, 0, 2**32 - 1], "fingerprint": "f"}
    request = await translated({"fsr": {"resume": resume, "resumable": True}})
    assert (list(request.resume.token_ids), request.resume.fingerprint) == (resume["token_ids"], "f")
    assert (await translated({"fsr": {"resume": {"token_ids": [5]}}})).resume.fingerprint == ""
    assert not (await translated({"fsr": {"resumable": True}})).HasField("resume")


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ({}, "fsr.resume.token_ids: is missing; send it"),
        ([5], "fsr.resume: should be a JSON object"),
        ({"token_ids": [5, -1]}, "fsr.resume.token_ids[1]: should be greater than or equal to 0"),
        ({"token_ids": [2**32]}, "fsr.resume.token_ids[0]: should be less than 4294967296"),
        ({"token_ids": [1.5]}, "fsr.resume.token_ids[0]: should be a valid integer"),
        ({"token_ids": [], "text": "x"}, "fsr.resume.text: is unknown; check its spelling, or leave it out"),
    ],
)
async def test_resume_that_is_none_is_refused_by_name(resume, says):
    assert (await refusal({"fsr": {"resume": resume}})).startswith(says)


def test_body_has_room_for_the_tokens_of_a_long_answer():
    resume = {"token_ids": list(range(2**15))}
    body = json.dumps({"messages": HELLO, "fsr": {"resume": resume}}).encode()
    assert len(chat_request(body, max_values(SETTINGS)).fsr.resume.token_ids) == 2**15
    assert count_marks(body) <= max_marks(SETTINGS)


@pytest.mark.parametrize("name", sorted(REQUEST))
async def test_unsupported_field_when_off_is_accepted_and_else_refused(name):
    off, remedy = REQUEST[name]
    for value in (None, *off):
        assert await translated({name: value}) == await translated({})
    assert (await refusal({name: "something else"})) == f"{name}: is not supported; {remedy}"


async def test_field_without_effect_changes_nothing():
    assert await translated(dict.fromkeys(WITHOUT_EFFECT, "x")) == await translated({})


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "body: is no JSON"),
        (b"{", "body: is no JSON"),
        (b"[]", "body: is no JSON object"),
        (b"\xff\xfe", "body: is no JSON"),
        (b'{"temperature": NaN}', "body: is no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "body: is no JSON"),
        (b"[" * 100_000, "body: is no JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature: should be a finite"),
    ],
)
def test_body_when_it_is_no_json_object_is_refused(raw, says):
    with pytest.raises(InvalidRequest) as caught:
        chat_request(raw, MOST)
    assert str(caught.value).startswith(says)


def test_body_with_a_long_name_is_refused_with_the_remedy_in_few_characters():
    with pytest.raises(InvalidRequest) as caught:
        chat_request(json.dumps({"messages": HELLO, "x" * 100_000: 1}).encode(), MOST)
    assert (
        str(caught.value).endswith("is unknown; check its spelling, or leave it out") and len(str(caught.value)) < 700
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": [{}] * 10_000}, "body: has more than 10000 values; send fewer messages, parts or frames"),
        ({"messages": [1] * 10_000}, "body: has more than 10000 values"),
        ({"stop": [["x"] * 5000] * 2}, "body: has more than 10000 values"),
        ({f"x{i}": 1 for i in range(300)}, "body: an object in it has more than 300 fields; send fewer"),
        ({"fsr": {"options": {f"x{i}": None for i in range(301)}}}, "body: an object in it has more than 300 fields"),
        ({"fsr": {"options": {"a": [0.5] * 200, "b": [0.5] * 57}}}, "fsr.options: hold more than 256 values"),
        ({"messages": [{"role": "r" * 10_000_000, "content": "x"}]}, "messages[0].role: 'rrr"),
        ({"messages": [{}] * 9000}, "messages[0].role: is missing; send it"),
        ({"messages": [{"role": "user", "content": [{}] * 9000}]}, "messages[0].content[0].type: is missing"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
async def test_body_when_it_is_all_structure_is_refused_at_once(change, says):
    began = time.process_time()
    message = await refusal(change)
    assert message.startswith(says) and len(message) < 700
    assert time.process_time() - began < 1


def test_marks_are_as_many_as_values_and_escapes():
    body = json.dumps({"a": [1, [2, {}], "x\n"], "b": {}}).encode()
    assert count_marks(body) >= 8 and count_marks(b'"' + b"QUJD\\/" * 1000 + b'"') == 0
    assert count_marks(b"\\u0001" * 100) == 100
