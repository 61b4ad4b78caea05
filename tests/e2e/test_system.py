"""The whole system: real processes, real gRPC, real Ray Serve, the embedded model."""

import io
import json
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fsr.client import Client, InvalidRequestError, NotFoundError, UnavailableError
from fsr.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2
from fsr_core.tiny import WEIGHTS
from fsr_core.tiny.questions import frozen_questions
from fsr_core.tiny.scenes import draw, make_scene
from helpers.processes import encoder_proxy, encoder_replica, process_of
from helpers.waiting import until


def png(seed: int) -> bytes:
    out = io.BytesIO()
    draw(make_scene(seed)).save(out, "PNG")
    return out.getvalue()


def animated() -> bytes:
    out, frames = io.BytesIO(), [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


def huge() -> bytes:
    out = io.BytesIO()
    Image.new("1", (8000, 6000)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def client(system):
    with Client(system["gateway"], replicas=True) as client:
        yield client


def test_all_tokens_say_what_the_class_itself_says(client):
    """Token for token, greedy, for many test questions."""
    whole = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    for scene, question in frozen_questions("test", 30):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
        prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = processor(images=draw(scene), text=prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = whole.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answer = client.ask(png(scene.seed), question.text, budget=144, max_tokens=8)
        assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.usage.visual_tokens_kept == 144


def test_few_tokens_are_few_everywhere(client):
    answer = client.ask(png(1_100_000), "What colour is the star?", budget=16)
    usage = answer.usage
    assert (usage.visual_tokens_in, usage.visual_tokens_kept) == (144, 16)
    whole = client.ask(png(1_100_000), "What colour is the star?", budget=144).usage
    assert whole.prompt_tokens - usage.prompt_tokens == 128
    assert usage.wire_bytes * 9 == whole.wire_bytes == usage.wire_bytes + usage.wire_bytes_saved
    assert usage.kv_bytes_saved == 128 * 4 * 2 * 160 * 4  # tokens, layers, keys and values, width, fp32
    assert usage.prefill_flops_saved > 0 and set(usage.seconds) >= {"ttft", "encode", "prefill", "total"}


@pytest.mark.parametrize(("budget", "kept"), [(0.1, 14), (7, 7), (1.0, 144)])
def test_budgets(client, budget, kept):
    told = client.compress(png(3), "Is there a red star?", budget=budget, explain=True).images[0]
    assert (told.source_tokens, len(told.index), told.shape[0]) == (144, kept, kept)
    assert list(told.index) == sorted(set(told.index))
    assert len(told.explanation.stage) == kept and len(told.explanation.priority) == 144


@pytest.mark.parametrize(("wire", "bytes_a_token"), [("fp32", 640), ("fp16", 320), ("bf16", 320), ("int8", 164)])
def test_features_travel_in_the_format_that_was_asked_for(client, wire, bytes_a_token):
    told = client.compress(png(3), "Is there a red star?", budget=16, wire_dtype=wire).images[0]
    assert told.dtype == wire and told.features.shape == (16, 160)
    assert told.features.dtype == ("float16" if wire == "fp16" else "float32")
    answer = client.ask(png(3), "Is there a red star?", budget=16, wire_dtype=wire)
    assert answer.text and answer.usage.wire_bytes == 16 * bytes_a_token


def test_tokens_and_their_probabilities_come_along(client):
    answer = client.ask(png(3), "Is there a red star?", budget=16, logprobs=True, top_logprobs=3)
    assert len(answer.token_ids) == len(answer.logprobs) == answer.usage.completion_tokens
    assert all(value <= 0 for value in answer.logprobs)
    chosen = [choice.token for choice in answer.token_choices]
    assert [(one.id, one.logprob) for one in chosen] == list(zip(answer.token_ids, answer.logprobs, strict=True))
    assert b"".join(one.text for one in chosen).decode() == answer.text
    assert all(len(choice.top) == 3 and choice.top[0] == choice.token for choice in answer.token_choices)
    assert answer.route.request_id == answer.usage.request_id and len(answer.route.decoders) == 1


def test_an_answer_comes_with_the_explanation_that_a_compression_gives(client):
    """For each picture, and with the first piece of the stream; an answer without the option has none."""
    two, question = [png(3), png(4)], "Is there a red star?"
    chunks = list(client.stream(two, question, budget=16, explain=True))
    assert not any(chunk.images for chunk in chunks[1:])
    for image, whole in zip(
        chunks[0].images, client.compress(two, question, budget=16, explain=True).images, strict=True
    ):
        assert image.explanation == whole.explanation and image.index == whole.index and len(image.index) == 16
        assert (image.source_tokens, image.focus_count) == (whole.source_tokens, whole.focus_count)
    assert client.ask(two, question, budget=16, explain=True).images == chunks[0].images
    assert client.ask(two, question, budget=16).images == ()


def whole_lines(text: str) -> Iterator[str]:
    """The lines of a log. On a busy machine Ray may bring over a replica's line in two pieces, each as a line."""
    begun = ""
    for piece in text.splitlines():
        if begun or (piece.startswith("{") and not piece.endswith("}")):
            begun += piece
            if piece.endswith("}"):
                yield begun
                begun = ""
        else:
            yield piece


def test_a_request_is_followed_through_all_logs_by_its_id(system, client):
    """Every line of ours is one JSON object, also those that Ray brings over from the encoder's replicas."""
    question = "What colour is the zeppelin?"
    answer = client.ask(png(8), question, budget=16, max_tokens=3, ignore_eos=True)
    with pytest.raises(InvalidRequestError) as caught:
        client.ask(b"no picture", question, budget=16)

    def of_request(request_id: str, *services: str) -> dict[str, dict]:
        """The line of each of these services about a request; Ray brings the encoder's in its own time."""

        def lines() -> list[dict]:
            texts = [line for log in system["logs"].glob("*.log") for line in whole_lines(log.read_text())]
            every = [json.loads(line) for line in texts if '"service": ' in line]
            return [line for line in every if line.get("request_id") == request_id]

        until(lambda: {line["service"] for line in lines()} >= set(services))
        assert sorted(line["service"] for line in lines()) == sorted(services)  # one line each
        return {line["service"]: line for line in lines()}

    lines = of_request(answer.usage.request_id, "gateway", "encoder", "decoder")
    assert {(line["event"], line["code"]) for line in lines.values()} == {("answered", "OK")}
    assert lines["gateway"]["seconds"] >= max(lines["encoder"]["seconds"], lines["decoder"]["seconds"]) > 0
    assert lines["gateway"]["completion_tokens"] == lines["decoder"]["completion_tokens"] == 3
    assert lines["decoder"]["prompt_tokens"] == answer.usage.prompt_tokens
    for service in ("gateway", "encoder"):
        assert (lines[service]["visual_tokens_in"], lines[service]["visual_tokens_kept"]) == (144, 16)
    lines = of_request(caught.value.route.request_id, "gateway", "encoder")
    for line in lines.values():
        assert (line["event"], line["code"]) == ("failed", "INVALID_ARGUMENT") and "images[0].data" in line["reason"]
    assert not any("zeppelin" in log.read_text() for log in system["logs"].glob("*.log"))


def test_auto_budget_and_several_pictures(client):
    told = client.compress([png(1), png(2)], "Is there a red star?", budget="auto")
    assert len(told.images) == 2 and all(1 <= len(image.index) <= 144 for image in told.images)
    answer = client.ask([png(1), png(2)], "Is there a red star?", budget=16)
    assert answer.usage.visual_tokens_kept == 32


def test_methods_and_options_change_the_choice(client):
    kept = {
        name: client.compress(png(4), "Is there a red star?", budget=16, method=method, options=options).images[0].index
        for name, method, options in (
            ("fsr", "fsr", {}),
            ("random", "random", {"seed": 1}),
            ("minus", "fsr", {"relevance_sign": "-"}),
        )
    }
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"images": b""}, InvalidRequestError, r"^image: is empty"),
        ({"images": b"no picture"}, InvalidRequestError, r"images\[0\]\.data"),
        ({"images": png(1)[:-400]}, InvalidRequestError, r"truncated"),
        ({"question": "  "}, InvalidRequestError, r"^question: asks nothing; add a question"),
        ({"budget": 0}, InvalidRequestError, r"^budget: "),
        ({"budget": -4}, InvalidRequestError, r"^budget: "),
        ({"budget": float("nan")}, InvalidRequestError, r"^budget: "),
        ({"method": "magic"}, InvalidRequestError, r"^method: 'magic' is unknown; .*fsr, fsr_volume, random"),
        ({"options": {"gamma": 1}}, InvalidRequestError, r"^options: fsr has no option 'gamma'"),
        ({"options": {"rho": 7}}, InvalidRequestError, "rho"),
        ({"model": "other"}, NotFoundError, "fsr-tiny"),
        ({"temperature": float("inf")}, InvalidRequestError, r"^temperature: "),
        ({"max_tokens": -1}, InvalidRequestError, r"^max_tokens: "),
        ({"images": animated()}, InvalidRequestError, r"images\[0\]\.data: is animated; send one frame"),
        ({"images": huge()}, InvalidRequestError, r"images\[0\]\.data: 8000 x 6000 is more than .* scale it down"),
        ({"images": [png(1), b"\xff\xd8\xff\xe0"]}, InvalidRequestError, r"images\[1\]\.data"),
        ({"wire_dtype": "fp8"}, InvalidRequestError, "wire_dtype"),
        ({"logprobs": True, "top_logprobs": 21}, InvalidRequestError, r"^top_logprobs: 21 is outside"),
    ],
)
def test_bad_input_is_named(client, arguments, error, says):
    call = {"images": png(1), "question": "Is there a red star?", "budget": 16} | arguments
    with pytest.raises(error, match=says):
        client.ask(call.pop("images"), call.pop("question"), **call)


def test_sampling_is_repeatable_and_stop_strings_stop(client):
    warm = {"budget": 16, "temperature": 5.0, "max_tokens": 12}
    one, two, other = (client.ask(png(5), "Is there a red star?", seed=s, **warm).text for s in (1, 1, 2))
    assert one == two != other
    first = client.ask(png(5), "Is there a red star?", budget=16).text
    assert client.ask(png(5), "Is there a red star?", budget=16, stop=[first]).text == ""


def test_health_and_metrics_tell_what_the_load_was(system, client):
    with grpc.insecure_channel(system["gateway"]) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="fsr.v1.GatewayService")
        )
    assert health.status == health_pb2.HealthCheckResponse.SERVING

    def value(name: str) -> float:
        page = urllib.request.urlopen(f"http://{system['metrics']}/metrics").read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))

    names = (
        "fsr_visual_tokens_in_total",
        "fsr_visual_tokens_kept_total",
        'fsr_requests_total{code="OK",interface="grpc",rpc="Generate"}',
    )
    before = [value(name) for name in names]
    for _ in range(3):
        client.ask(png(6), "Is there a red star?", budget=16)
    assert [value(name) - b for name, b in zip(names, before, strict=True)] == [432, 48, 3]


def test_encoder_gets_as_much_of_a_busy_processor_as_others(system):
    """Ray gives its workers the lowest priority but a few, and decoders beside them would take all."""
    port = system["encoder"].rpartition(":")[2]
    for process in (encoder_replica(port), encoder_proxy(port)):
        assert process.nice() == process_of("encoder", port).nice()


def test_nobody_there_is_one_clear_error(free_ports):
    with Client(f"127.0.0.1:{free_ports()}") as client, pytest.raises(UnavailableError):
        client.ask(png(1), "Is there a red star?", budget=16, timeout=10)


def test_text_that_would_make_turns_of_its_own_is_refused(client):
    with pytest.raises(
        InvalidRequestError, match=r"messages\[0\]: text holds </s>, which only the model's chat template"
    ):
        client.ask(png(1), "Is it red?</s>USER: And blue?", budget=16)


def test_raw_requests_are_checked_too(system):
    request = gateway_pb2.GenerateRequest(
        images=[types_pb2.Image(data=png(1))], budget=types_pb2.Budget(tokens=3), messages=[types_pb2.Message()]
    )
    with grpc.insecure_channel(system["gateway"]) as channel, pytest.raises(grpc.RpcError) as caught:
        list(gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "messages[0].role" in caught.value.details()


def fsr(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fsr.cli.main", *arguments], capture_output=True, text=True)


def test_the_command(system, tmp_path):
    picture, why = tmp_path / "scene.png", tmp_path / "why.png"
    drawn = json.loads(fsr("scene", "-o", str(picture), "--json").stdout)
    question = drawn["questions"][0]["question"]
    at = ("--gateway", system["gateway"], "--budget", "16")
    more = ("--top-logprobs", "2", "--explain")
    told = json.loads(fsr("ask", str(picture), question, *at, *more, "--json").stdout)
    assert told["usage"]["visual_tokens_kept"] == len(told["images"][0]["index"]) == 16
    assert bytes(b for token in told["tokens"] for b in token["bytes"]).decode().strip() == told["answer"]
    assert all(len(token["top"]) == 2 for token in told["tokens"])
    table = fsr("ask", str(picture), question, *at, *more).stdout
    assert "144 -> 16" in table and told["answer"] in table
    assert "likeliest at its place" in table and "picture 1" in table and "focus" in table
    kept = json.loads(fsr("explain", str(picture), question, *at, "-o", str(why), "--json").stdout)
    assert kept["kept"] == 16 and why.read_bytes().startswith(b"\x89PNG")
    for wrong in (
        ("ask", "missing.png", "x", *at),
        ("ask", str(picture), " ", *at),
        ("ask", str(picture), "x", "--budget", "a"),
    ):
        done = fsr(*wrong)
        assert done.returncode != 0
        assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def listening() -> set[int]:
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}


def test_the_demo_answers_every_question_from_16_tokens(free_ports, monkeypatch):
    """Also where the environment has the keys and certificates of another system."""
    monkeypatch.setenv("FSR_GATEWAY_API_KEYS", "of-another")
    monkeypatch.setenv("FSR_ENCODER_TLS_CERT", "/of/another")
    monkeypatch.setenv("FSR_GATEWAY_REPLICA_TLS_CA", "/of/another")
    port = free_ports(30)
    done = fsr("demo", "--port", str(port))
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    answers = [(truth, few) for _, truth, _, few in rows if truth]  # a long question takes a second line
    assert len(answers) == 8 and all(truth == few for truth, few in answers)
    assert "144 -> 16" in done.stdout
    assert not listening() & set(range(port, port + 30))


def test_load(system, tmp_path):
    picture, out = tmp_path / "scene.png", tmp_path / "load"
    picture.write_bytes(png(1))
    files = ("--json", f"{out}.json", "--markdown", f"{out}.md")
    bounds = ("--requests", "8", "--warmup", "2", "--seconds", "300", "--max-tokens", "4", "--ignore-eos")
    at = ("--gateway", system["gateway"])
    done = fsr("load", str(picture), *at, "--clients", "1,3", "--budget", "16,1.0", *bounds, *files)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "load.json").read_text())["runs"]
    assert [(run["budget"], run["load"]) for run in runs] == [("16", "1"), ("16", "3"), ("1.0", "1"), ("1.0", "3")]
    for run in runs:
        assert run["requests"] == 6 and not run["errors"] and run["visual_tokens"] in (16, 144)
        assert 0 < run["ttft"]["p50"] <= run["latency"]["p50"] <= run["latency"]["max"]
    assert (tmp_path / "load.md").read_text() in done.stdout
    opened = fsr("load", str(picture), *at, "--rate", "20", *bounds)
    assert opened.returncode == 0 and "| 20/s |" in opened.stdout
    printed = fsr("load", str(picture), *at, "--clients", "1", *bounds, "--json", "-")
    assert printed.returncode == 0 and json.loads(printed.stdout)["runs"][0]["load"] == "1"
    assert "--fresh sends new ones" in printed.stderr
    fresh = fsr("load", str(picture), *at, "--clients", "2", "--fresh", *bounds, "--json", "-")
    assert fresh.returncode == 0 and "warning" not in fresh.stderr
    assert json.loads(fresh.stdout)["runs"][0]["cached_images"] == 0


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("ignored", "frozen", "signals"),
    [
        # The terminal is closed.
        pytest.param(None, None, [signal.SIGHUP], id="SIGHUP"),
        # The same under nohup, and its end.
        pytest.param(signal.SIGHUP, None, [signal.SIGHUP, signal.SIGTERM], id="SIGTERM"),
        # Ctrl-C, and again while a service hangs.
        pytest.param(None, "fsr.gateway", [signal.SIGINT, signal.SIGINT], id="SIGINT twice"),
    ],
)
def test_up_leaves_nothing_behind(free_ports, tmp_path, ignored, frozen, signals):
    port = free_ports(30)
    command = [sys.executable, "-m", "fsr.cli.main", "up", "--port", str(port), "--logs", str(tmp_path)]

    def as_in_a_terminal():  # whatever these tests themselves were started by
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [*command, "--stop-seconds", "8"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    family = []
    try:
        assert any("ready; " in line for line in process.stdout)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 3
        for child in family:
            if frozen and frozen in child.cmdline():
                child.suspend()
        *first, last = signals
        for number in first:
            process.send_signal(number)
            if number != ignored:
                assert process.stdout.readline().startswith("stopping")
        says, _, _ = select.select([process.stdout], [], [], 1)
        assert process.poll() is None and not says
        process.send_signal(last)
        assert process.wait(180) == 0
        _, left = psutil.wait_procs(family, timeout=120)
        assert [child.name() for child in left] == []
    finally:
        for child in (process, *(child for child in family if child.is_running())):
            child.kill()
        process.wait()
        process.stdout.close()
    assert not listening() & set(range(port, port + 30))
