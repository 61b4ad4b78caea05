"""The HTTP interface of the running system: answers, streams, cancellation, and the same figures as by gRPC."""

import base64
import http.client
import json
import signal
import socket
import threading
import urllib.request

import pytest
import safetensors.torch
import torch
from prometheus_client.parser import text_string_to_metric_families

from fsr.client import Client
from fsr.gateway.http.schemas.responses import ChatAnswer, ChatChunk, Compression, Error, ModelList, ServedModel
from helpers.waiting import until

CHAT, COMPRESS = "/v1/chat/completions", "/v1/compress"
QUESTION = "What colour is the star?"


class Http:
    """A client of the gateway: a new connection for each request."""

    def __init__(self, address: str) -> None:
        self.host, _, port = address.partition(":")
        self.port = int(port)

    def post(self, path: str, body: dict, **headers: str):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=180)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"} | headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response, data

    def chat(self, body: dict) -> dict:
        response, data = self.post(CHAT, body)
        assert response.status == 200, data
        answer = json.loads(data)
        ChatAnswer.model_validate(answer)
        assert answer["id"] == f"chatcmpl-{response.headers['x-request-id']}"
        return answer

    def events(self, body: dict) -> list[dict]:
        response, data = self.post(CHAT, body | {"stream": True})
        assert response.status == 200 and response.headers["content-type"].startswith("text/event-stream"), data
        *events, end, rest = data.decode().split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        for chunk in chunks:
            ChatChunk.model_validate(chunk)
        assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{response.headers['x-request-id']}"}
        return chunks

    def connection_of(self, body: dict) -> socket.socket:
        """A connection on which the request has been sent, and nothing was read."""
        raw = json.dumps(body).encode()
        connection = socket.create_connection((self.host, self.port), timeout=180)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        connection.sendall(head.encode() + raw)
        return connection


@pytest.fixture
def api(system):
    return Http(system["http"])


@pytest.fixture
def metric(system):
    """The sum of the gateway's series with these labels."""

    def read(name: str, **labels: str) -> float:
        page = urllib.request.urlopen(f"http://{system['metrics']}/metrics").read().decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    return read


def uri(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def turn(question: str, *files: bytes) -> dict:
    pictures = [{"type": "image_url", "image_url": {"url": uri(file)}} for file in files]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


def ask(question: str, *files: bytes, **fields) -> dict:
    return {"messages": [turn(question, *files)], "fsr": {"budget": 16}} | fields


def text_of(chunks: list[dict]) -> str:
    return "".join(choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"])


def test_answer_is_the_one_by_grpc(system, api, pictures):
    for picture in pictures(2_000_000, 5):
        answer = api.chat(ask(QUESTION, picture, model="fsr-tiny"))
        with Client(system["gateway"]) as client:
            by_grpc = client.ask(picture, QUESTION, budget=16)
        assert answer["choices"][0]["message"]["content"] == by_grpc.text
        assert answer["choices"][0]["finish_reason"] == by_grpc.finish_reason
        usage = answer["usage"]
        assert usage["total_tokens"] == by_grpc.usage.prompt_tokens + by_grpc.usage.completion_tokens
        for name in ("visual_tokens_in", "visual_tokens_kept", "kv_bytes_saved", "prefill_flops_saved", "wire_bytes"):
            assert usage["fsr"][name] == getattr(by_grpc.usage, name), name
        assert usage["fsr"]["seconds"].keys() == by_grpc.usage.seconds.keys()


def test_sampled_answer_with_a_seed_is_the_one_by_grpc(system, api, pictures):
    (picture,) = pictures(2_000_010, 1)
    options = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.9, "top_k": 40, "seed": 7, "ignore_eos": True}
    with Client(system["gateway"]) as client:
        by_grpc = client.ask(picture, QUESTION, budget=16, **options)
    body = ask(QUESTION, picture, **options)
    assert api.chat(body)["choices"][0]["message"]["content"] == by_grpc.text == text_of(api.events(body))


def test_stream_has_role_reason_and_usage_and_the_whole_answers_text(api, pictures):
    body = ask(QUESTION, *pictures(2_000_020, 1), max_completion_tokens=9, ignore_eos=True)
    chunks = api.events(body | {"stream_options": {"include_usage": True}})
    *parts, end = chunks
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in parts] == [None] * (len(parts) - 1) + ["length"]
    assert end["choices"] == [] and end["usage"]["completion_tokens"] == 9
    assert end["usage"]["fsr"]["visual_tokens_kept"] == 16
    assert text_of(chunks) == api.chat(body)["choices"][0]["message"]["content"]
    assert all("usage" not in chunk for chunk in api.events(body))


def test_conversation_with_several_pictures_and_turns(system, api, pictures):
    first, second = pictures(2_000_030, 2)
    messages = [
        {"role": "system", "content": "answer briefly"},
        turn("What is it?", first),
        {"role": "assistant", "content": "a scene"},
        turn(QUESTION, second),
    ]
    usage = api.chat({"messages": messages, "fsr": {"budget": 8}})["usage"]["fsr"]
    assert (usage["visual_tokens_in"], usage["visual_tokens_kept"]) == (288, 16)


def test_question_without_picture(api):
    usage = api.chat({"messages": [{"role": "user", "content": QUESTION}]})["usage"]
    assert usage["fsr"]["visual_tokens_in"] == 0 and usage["fsr"]["budget"] is None


def test_usage_says_what_was_applied_and_who_chose_it(api, pictures):
    (picture,) = pictures(3, 1)
    names = ("budget", "spread", "budget_chosen_by", "method", "method_chosen_by")
    for options, expected in (
        (None, ["auto", "even", "policy", "fsr", "policy"]),
        ({"budget": 0.5, "spread": "free"}, [0.5, "free", "request", "fsr", "policy"]),
        ({"method": "uniform"}, ["auto", "even", "policy", "uniform", "request"]),
    ):
        usage = api.chat(ask(QUESTION, picture, fsr=options))["usage"]["fsr"]
        assert [usage[name] for name in names] == expected


def test_log_probabilities_are_those_by_grpc(system, api, pictures):
    (picture,) = pictures(2_000_015, 1)
    body = ask(QUESTION, picture, max_tokens=5, ignore_eos=True, logprobs=True, top_logprobs=3)
    with Client(system["gateway"]) as client:
        by_grpc = client.ask(picture, QUESTION, budget=16, max_tokens=5, ignore_eos=True, logprobs=True)
    content = api.chat(body)["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in content] == pytest.approx(list(by_grpc.logprobs))
    for token in content:
        assert bytes(token["bytes"]).decode() == token["token"]
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0] == {name: token[name] for name in ("token", "logprob", "bytes")}  # greedy
    streamed = [one for c in api.events(body) for ch in c["choices"] for one in ch["logprobs"]["content"]]
    assert [token["token"] for token in streamed] == [token["token"] for token in content]


@pytest.mark.parametrize(("budget", "kept"), [(7, 7), (0.1, 14), (1.0, 144), ("all", 144)])
def test_budgets(api, pictures, budget, kept):
    answer = api.chat(ask(QUESTION, *pictures(3, 1), fsr={"budget": budget}))
    assert answer["usage"]["fsr"]["visual_tokens_kept"] == kept


def test_explanation_is_the_one_of_compress_by_grpc(system, api, pictures):
    (picture,) = pictures(2_000_040, 1)
    body = ask(QUESTION, picture, fsr={"budget": 16, "explain": True})
    whole, first = api.chat(body)["fsr"]["images"][0], api.events(body)[0]["fsr"]["images"][0]
    with Client(system["gateway"]) as client:
        expected = client.compress(picture, QUESTION, budget=16, explain=True).images[0]
    assert whole == first and whole["index"] == list(expected.index)
    assert whole["explanation"]["stage"] == list(expected.explanation.stage)
    assert whole["explanation"]["merged_into"] == list(expected.explanation.merged_into)
    assert whole["explanation"]["priority"] == pytest.approx(list(expected.explanation.priority))


def test_compress_as_json_and_as_safetensors(system, api, pictures):
    (picture,) = pictures(2_000_050, 1)
    with Client(system["gateway"]) as client:
        expected = client.compress(picture, QUESTION, budget=16, wire_dtype="bf16").images[0]
    body = {"images": [uri(picture)], "instruction": QUESTION, "fsr": {"budget": 16, "wire_dtype": "bf16"}}
    response, data = api.post(COMPRESS, body | {"features": True})
    (image,) = json.loads(data)["images"]
    Compression.model_validate(json.loads(data))
    assert response.status == 200 and image["index"] == list(expected.index) and "explanation" not in image
    wanted = torch.from_numpy(expected.features)
    data = bytearray(base64.b64decode(image["features"]["data"]))
    assert torch.equal(torch.frombuffer(data, dtype=torch.bfloat16).view(expected.shape).float(), wanted)
    assert "features" not in json.loads(api.post(COMPRESS, body)[1])["images"][0]
    for asked in (
        lambda: api.post(COMPRESS, body | {"format": "safetensors"}),
        lambda: api.post(COMPRESS, body, accept="application/x-safetensors"),
    ):
        response, data = asked()
        assert response.headers["content-type"] == "application/x-safetensors"
        tensors = safetensors.torch.load(data)
        features = tensors["images.0.features"]
        assert features.dtype == torch.bfloat16 and torch.equal(features.float(), wanted)
        assert tensors["images.0.index"].tolist() == list(expected.index)


def test_models_with_facts(api):
    connection = http.client.HTTPConnection(api.host, api.port)
    for path, schema in (("/v1/models", ModelList), ("/v1/models/fsr-tiny", ServedModel)):
        connection.request("GET", path)
        body = json.loads(connection.getresponse().read())
        schema.model_validate(body)
        model = body["data"][0] if "data" in body else body
        assert model["id"] == "fsr-tiny" and "fsr" in model["fsr"]["methods"]
        assert (model["fsr"]["encoders"], model["fsr"]["decoders"]) == (1, 2)
    connection.close()


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "huge"}, 404, "model"),
        ({"fsr": {"budget": 2.5}}, 400, "fsr.budget"),
        ({"fsr": {"budget": 16, "method": "magic"}}, 400, "fsr.method"),
        ({"fsr": {"budget": 16, "options": {"rho": 7}}}, 400, "fsr.options.rho"),
        ({"fsr": {"budget": 16, "options": {"magic": 7}}}, 400, "fsr.options"),
        ({"messages": [turn(QUESTION, b"no picture")]}, 400, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": "?!" * 32_000}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "Hello</s>"}]}, 400, "messages[0]"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_of_any_service_names_the_field_of_the_request(api, pictures, change, status, param, stream):
    response, data = api.post(CHAT, ask(QUESTION, *pictures(3, 1)) | change | {"stream": stream})
    told = Error.model_validate_json(data).error
    assert response.status == status, told
    assert told.param and told.param.startswith(param) and told.message.startswith(told.param), told


@pytest.mark.parametrize("stream", [False, True])
def test_caller_who_hangs_up_frees_the_slot(api, metric, pictures, stream):
    cancelled = {"interface": "http", "rpc": "Generate", "code": "CANCELLED"}
    before = metric("fsr_requests_total", **cancelled)
    body = ask(QUESTION, *pictures(3, 1), max_tokens=20_000, ignore_eos=True, stream=stream)
    connection = api.connection_of(body)
    if stream:
        received = b""
        while b"data: " not in received:  # the head may come before the first event
            received += (piece := connection.recv(4096))
            assert piece, received
    else:
        until(lambda: metric("fsr_requests_in_flight") == 1)
    connection.close()
    until(lambda: metric("fsr_requests_total", **cancelled) == before + 1)
    assert metric("fsr_requests_in_flight") == 0


def test_deadline_when_it_passes_is_504_or_an_event(api, metric, pictures):
    body = ask(QUESTION, *pictures(3, 1), max_tokens=20_000, ignore_eos=True, fsr={"budget": 16, "timeout": 2})
    response, data = api.post(CHAT, body)
    assert response.status == 504 and Error.model_validate_json(data).error.code == "deadline_exceeded"
    response, data = api.post(CHAT, body | {"stream": True})
    *_, last, rest = data.decode().split("\n\n")
    assert response.status == 200 and rest == ""
    told = Error.model_validate_json(last.removeprefix("data: ")).error
    assert (told.type, told.param) == ("timeout_error", "fsr.timeout")


def test_streams_beside_each_other_do_not_mix(api, pictures):
    files = pictures(2_000_060, 8)
    bodies = [ask(QUESTION, file, max_tokens=20, ignore_eos=True) for file in files]
    alone = [text_of(api.events(body)) for body in bodies]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, body=body: together.update({i: text_of(api.events(body))}))
        for i, body in enumerate(bodies)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(8)] == alone


def test_gateway_that_is_full_or_shuts_down_says_when_to_try_again(system, spawn, free_ports, pictures):
    """Its running stream goes on to its end; the process ends then."""
    port, decoders = free_ports(), f"{system['decoder-0']},{system['decoder-1']}"
    flags = ("--encoders", system["encoder"], "--decoders", decoders, "--max-requests", "1", "--max-waiting", "0")
    flags += ("--drain-seconds", "120")
    service = spawn("gateway", *flags, "--http-port", str(port))
    service.wait_until_serving()
    api = Http(f"127.0.0.1:{port}")
    body = ask(QUESTION, *pictures(3, 1), max_tokens=900, ignore_eos=True)
    stream = api.connection_of(body | {"stream": True})
    received = stream.recv(4096)
    assert received.startswith(b"HTTP/1.1 200 OK")
    response, data = api.post(CHAT, body)
    assert response.status == 429 and Error.model_validate_json(data).error.code == "rate_limit_exceeded"
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "500")
    idle = http.client.HTTPConnection(api.host, api.port, timeout=60)
    idle.request("GET", "/health")
    idle.getresponse().read()
    service.send(signal.SIGTERM)
    service.wait_until_it_says("draining")
    idle.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
    response = idle.getresponse()
    assert response.status == 503 and Error.model_validate_json(response.read()).error.code == "not_ready"
    assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")
    idle.close()
    while piece := stream.recv(2**16):
        received += piece
    stream.close()
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert service.end(0) == 0 and "Traceback" not in service.log.read_text()


def test_request_is_found_in_the_logs_by_its_id(system, api, pictures):
    response, _ = api.post(CHAT, ask(QUESTION, *pictures(2_000_070, 1)))
    request_id = response.headers["x-request-id"]
    log = system["logs"] / "gateway.log"
    until(lambda: f'"request_id": "{request_id}"' in log.read_text())  # it is written once the answer has been sent
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == request_id]
    assert (line["event"], line["rpc"], line["code"], line["interface"]) == ("answered", "Generate", "OK", "http")
    assert line["model"] == "fsr-tiny" and line["visual_tokens_kept"] == 16
    until(lambda: any(request_id in path.read_text() for path in system["logs"].glob("decoder-*.log")))
