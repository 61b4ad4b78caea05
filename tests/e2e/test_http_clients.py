"""The official `openai` client for Python asks the whole system by HTTP."""

import asyncio
import json
import urllib.request
from dataclasses import dataclass
from threading import Timer

import openai
import pytest

from fsr.client import Client
from helpers.chat import data_uri, messages, picture_part
from helpers.waiting import until

QUESTION = "What colour is the star?"
MODEL = "fsr-tiny"
FSR = {"fsr": {"budget": 16}}
LONG = {"ignore_eos": True, "fsr": {"budget": 16}}
KEY, OTHER_KEY, OTHERS_MODEL = "open-sesame", "other", "another-model"


@dataclass
class Gateways:
    """`usual` asks for no keys, `small` takes one request at a time, `keys` knows two keys."""

    usual: object
    small: object
    keys: object

    def __iter__(self):
        return iter((self.usual, self.small, self.keys))


@pytest.fixture(scope="module")
def gateways(system, spawn, free_ports, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n{OTHER_KEY} {OTHERS_MODEL}\n")
    decoders = ",".join(system[f"decoder-{number}"] for number in range(2))

    def gateway(*flags):
        port = free_ports()
        replicas = ("--encoders", system["encoder"], "--decoders", decoders)
        service = spawn("gateway", *replicas, "--http-port", str(port), *flags)
        service.base_url = f"http://127.0.0.1:{port}/v1"
        return service

    three = Gateways(
        gateway(), gateway("--max-requests", "1", "--max-waiting", "0"), gateway("--api-keys-file", str(keys))
    )
    for service in three:
        service.wait_until_serving()
    return three


def client_of(gateway, **options):
    return openai.OpenAI(
        **{"base_url": gateway.base_url, "api_key": "none", "max_retries": 0, "timeout": 300} | options
    )


@pytest.fixture(scope="module")
def client(gateways):
    with client_of(gateways.usual) as client:
        yield client


@pytest.fixture(scope="module")
def picture(pictures):
    return pictures(500, 1)[0]


def ask(client, picture, question=QUESTION, **options):
    options = {"model": MODEL, "extra_body": FSR, **options}
    return client.chat.completions.create(messages=messages(question, picture), **options)


def test_answer_is_that_of_grpc_with_the_same_figures(client, gateways, picture):
    answer = ask(client, picture)
    with Client(gateways.usual.address) as grpc_client:
        expected = grpc_client.ask(picture, QUESTION, budget=16)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == expected.finish_reason
    usage, figures = answer.usage, answer.usage.model_extra["fsr"]
    assert usage.prompt_tokens == expected.usage.prompt_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (figures["visual_tokens_in"], figures["visual_tokens_kept"]) == (144, 16)
    assert int(figures["kv_bytes_saved"]) == expected.usage.kv_bytes_saved > 0
    assert figures["seconds"]["total"] > 0


def test_stream_brings_the_same_text_and_figures_in_the_end(client, picture):
    whole = ask(client, picture, max_tokens=40, extra_body=LONG)
    with ask(
        client, picture, max_tokens=40, extra_body=LONG, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    *content, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in content) == whole.choices[0].message.content
    assert content[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in content if chunk.choices[0].finish_reason] == ["length"]
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in content)
    assert last.choices == [] and last.usage.completion_tokens == 40
    assert last.usage.model_extra["fsr"]["visual_tokens_kept"] == 16
    assert len(content) > 10  # it came in pieces


async def test_async_client_asks_many_at_once(gateways, client, pictures):
    some = pictures(510, 8)
    async with openai.AsyncOpenAI(base_url=gateways.usual.base_url, api_key="none", max_retries=0) as many:
        answers = await asyncio.gather(*(ask(many, one, temperature=0.9, seed=7) for one in some))
        stream = await ask(many, some[0], temperature=0.9, seed=7, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [ask(client, one, temperature=0.9, seed=7).choices[0].message.content for one in some]
    assert text == texts[0]


def test_conversation_with_several_pictures(client, pictures):
    first, second = pictures(520, 2)
    turns = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [picture_part(first), {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}, picture_part(second)]},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=turns, extra_body={"fsr": {"budget": 0.25}})
    figures = answer.usage.model_extra["fsr"]
    assert (figures["visual_tokens_in"], figures["visual_tokens_kept"]) == (288, 72)


def test_text_alone_is_answered(client):
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=3)
    assert answer.usage.completion_tokens <= 3 and answer.usage.model_extra["fsr"]["visual_tokens_in"] == 0


def test_raw_response_has_the_id_of_the_logs(client, gateways, picture):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=messages(QUESTION, picture), extra_body=FSR
    )
    request_id, answer = raw.headers["x-request-id"], raw.parse()
    assert answer._request_id == request_id == answer.usage.model_extra["fsr"]["request_id"]
    gateways.usual.wait_until_it_says(f'"request_id": "{request_id}"')
    lines = [json.loads(line) for line in gateways.usual.log.read_text().splitlines() if request_id in line]
    assert [(line["rpc"], line["code"], line["interface"]) for line in lines] == [("Generate", "OK", "http")]


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("missing")


@pytest.mark.parametrize(
    ("options", "error", "param", "says"),
    [
        ({"model": "missing"}, openai.NotFoundError, "model", "missing"),
        ({"n": 2}, openai.BadRequestError, "n", "; "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools", "; "),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format", "; "),
        ({"temperature": 11}, openai.BadRequestError, "temperature", "0 is greedy"),
        ({"extra_body": {"fsr": {"budget": 0}}}, openai.BadRequestError, "fsr.budget", "at least one token"),
        (
            {"extra_body": {"fsr": {"budget": 16, "method": "best"}}},
            openai.BadRequestError,
            "fsr.method",
            "choose one of",
        ),
        ({"extra_body": {"fsr": {"budgets": 3}}}, openai.BadRequestError, "fsr.budgets", "; "),
        ({"extra_body": {"wishes": 3}}, openai.BadRequestError, "wishes", "; "),
    ],
)
def test_wrong_request_is_an_error_of_its_class_that_names_the_field(client, picture, options, error, param, says):
    with pytest.raises(error) as caught:
        ask(client, picture, **options)
    assert caught.value.param == param and says in caught.value.message
    assert caught.value.type == ("not_found_error" if error is openai.NotFoundError else "invalid_request_error")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.org/a.png", "--http-image-hosts is not set"),
        (data_uri(b"no picture"), "is no "),
        ("data:image/png;base64,@@@", "is no base64"),
    ],
)
def test_wrong_picture_is_named_by_its_place(client, url, says):
    content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}], extra_body=FSR)
    assert caught.value.param == "messages[0].content[1].image_url.url" and says in caught.value.message


def test_keys(gateways, picture):
    with client_of(gateways.keys, api_key=KEY) as known:
        assert ask(known, picture).choices
    with client_of(gateways.keys) as stranger, pytest.raises(openai.AuthenticationError, match="API key is unknown"):
        ask(stranger, picture)
    with client_of(gateways.keys, api_key=OTHER_KEY) as other, pytest.raises(openai.PermissionDeniedError) as caught:
        ask(other, picture)
    assert OTHERS_MODEL in caught.value.message


def test_time_that_ends_is_said_by_whoever_measures_it(client, picture):
    with pytest.raises(openai.APITimeoutError):
        ask(client, picture, timeout=0.2, max_tokens=20_000, extra_body=LONG)
    with pytest.raises(openai.InternalServerError) as caught:  # the client's class for all statuses above 499
        ask(client, picture, max_tokens=20_000, extra_body={"ignore_eos": True, "fsr": {"budget": 16, "timeout": 0.5}})
    assert caught.value.status_code == 504 and "fsr.timeout" in caught.value.message


def test_full_gateway_is_asked_again_by_the_client_itself(gateways, picture):
    """The slot of a stream that its reader leaves is free at once."""
    small = gateways.small
    with client_of(small) as impatient, client_of(small, max_retries=8) as patient:
        stream = ask(impatient, picture, max_tokens=20_000, extra_body=LONG, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            ask(impatient, picture)
        assert caught.value.response.headers["retry-after"] == "1" and "; try again" in caught.value.message
        leave = Timer(0.5, stream.close)
        leave.start()
        assert ask(patient, picture).choices
        leave.join()
    until(lambda: small.metric("fsr_requests_in_flight") == 0)
    assert small.metric("fsr_requests_total", code="CANCELLED", interface="http") == 1


def test_probabilities_of_tokens(client, picture):
    (choice,) = ask(client, picture, logprobs=True, top_logprobs=3).choices
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == max(other.logprob for other in token.top_logprobs)


def test_video_is_a_list_of_frames(client, pictures):
    frames = [data_uri(frame) for frame in pictures(530, 4)]
    video = {"type": "video_url", "video_url": {"frames": frames, "fps": 2}}
    content = [video, {"type": "text", "text": QUESTION}]
    with pytest.raises(openai.BadRequestError) as caught:  # the embedded model takes pictures alone
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}], extra_body=FSR)
    assert caught.value.param == "messages[0].content[0].video_url" and "video" in caught.value.message


def test_health_and_description_need_no_client(gateways):
    root = gateways.usual.base_url.removesuffix("/v1")
    for path in ("/health", "/ready"):
        assert urllib.request.urlopen(root + path).status == 200
    described = json.load(urllib.request.urlopen(root + "/openapi.json"))
    assert "/v1/chat/completions" in described["paths"]
