"""What every engine must do, against a real process: the same tests for each of them."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
import torch

from fsr.common.wire import codec
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import types_pb2
from helpers.replicas import ENGINE, LONG, SHAPES, TINY, ids, question, text

WARM = {"temperature": 1.5, "top_p": 0.95, "top_k": 50, "seed": 5, "ignore_eos": True}
# Hot enough for bytes of several-byte characters to come up in any order.
HOT = {"temperature": 8.0, "seed": 133, "ignore_eos": True, "max_tokens": 48}
LENGTH = 850  # tokens of an answer that still runs when a test does something to it; the model takes 1,024 in all
IDLE = {"running_requests": 0, "waiting_requests": 0, "kv_reserved_bytes": 0, "kv_used_bytes": 0}


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_is_the_models_own_generate(replica, asks, name):
    got = replica.decode(asks[name].with_(max_tokens=24, ignore_eos=True))
    assert ids(got) == asks[name].generate(24)
    assert text(got) == asks[name].model.tokenizer.decode(ids(got), skip_special_tokens=True)
    assert got[-1].finish_reason == pb.FINISH_REASON_LENGTH
    stats, prompt = got[-1].stats, asks[name].prompt
    assert (stats.prompt_tokens, stats.visual_tokens) == (len(prompt.token_ids), prompt.visual_tokens)
    assert stats.completion_tokens == 24 and stats.prefill_seconds > 0 and stats.decode_seconds > 0


def test_a_mixed_batch_changes_nothing(replica, asks):
    """Requests of all shapes, lengths and ways of sampling at once: each gets what it gets alone."""
    lengths = (3, 17, 40)
    wanted, requests = [], []
    for ask in asks.values():
        longest = ask.generate(max(lengths))
        for length in lengths:
            requests.append(ask.with_(max_tokens=length, ignore_eos=True))
            wanted.append(longest[:length])
        requests.append(ask.with_(max_tokens=20, **WARM))
        wanted.append(ids(replica.decode(requests[-1])))
    with ThreadPoolExecutor(len(requests)) as pool:
        got = [ids(messages) for messages in pool.map(replica.decode, requests)]
    assert got == wanted


def test_an_answer_ends_where_the_model_ends_it(replica, asks, model):
    for ask in asks.values():
        longest = ask.generate(40)
        end = next((at for at, token in enumerate(longest) if token in model.eos_token_ids), None)
        got = replica.decode(ask.with_(max_tokens=40))
        assert ids(got) == (longest if end is None else longest[: end + 1])
        assert got[-1].finish_reason == (pb.FINISH_REASON_LENGTH if end is None else pb.FINISH_REASON_STOP)
    assert ids(replica.decode(asks["few"].with_(ignore_eos=True))) == asks["few"].generate(24)  # the default length


@TINY
def test_repetition_penalty_is_the_librarys(replica, asks):
    for ask in (asks["few"], asks["text"], asks["system"]):
        got = ids(replica.decode(ask.with_(max_tokens=24, ignore_eos=True, repetition_penalty=1.5)))
        assert got == ask.generate(24, repetition_penalty=1.5) != ask.generate(24)


def test_log_probabilities_are_the_models(replica, asks):
    ask = asks["few"]
    for sampling in ({"ignore_eos": True}, WARM):
        got = replica.decode(ask.with_(max_tokens=12, logprobs=True, **sampling))
        tokens = torch.tensor(ids(got))
        places = ask.log_probabilities(ids(got))[len(ask.prompt.token_ids) - 1 : -1]
        want = places.gather(1, tokens.unsqueeze(1)).flatten()
        assert torch.allclose(torch.tensor([p for m in got for p in m.logprobs]), want, atol=1e-3)
    assert not replica.decode(ask.with_(max_tokens=2))[0].logprobs


def token_bytes(messages):
    return b"".join(choice.token.text for message in messages for choice in message.token_choices)


def test_likeliest_tokens_of_one_batch_are_the_models(replica, asks):
    """Each request asks for another number, and samples in another way. The probabilities are those before that."""
    ask, penalty = asks["few"], {"repetition_penalty": 1.8, "ignore_eos": True}
    kinds = [(20, {"ignore_eos": True}), (3, WARM), (1, penalty), (0, WARM), (5, penalty | WARM)]
    requests = [ask.with_(max_tokens=12, logprobs=True, top_logprobs=count, **kind) for count, kind in kinds]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(replica.decode, requests))
    for (count, kind), got in zip(kinds, answers, strict=True):
        places = ask.log_probabilities(ids(got))[len(ask.prompt.token_ids) - 1 : -1]
        for place, message in zip(places, got, strict=True):
            (choice,) = message.token_choices
            assert (choice.token.id, choice.token.logprob) == (message.token_ids[0], message.logprobs[0])
            values = torch.tensor([one.logprob for one in choice.top])
            assert torch.allclose(values, place.topk(count).values, atol=1e-3)
            assert torch.allclose(values, place[[one.id for one in choice.top]], atol=1e-3)
            assert values.tolist() == sorted(values.tolist(), reverse=True)
            assert kind != {"ignore_eos": True} or choice.top[0] == choice.token
        assert token_bytes(got).decode(errors="replace") == text(got)


@TINY
def test_likeliest_tokens_are_those_of_generate(replica, asks):
    for ask in (asks["few"], asks["text"], asks["system"]):
        got = replica.decode(ask.with_(max_tokens=16, ignore_eos=True, logprobs=True, top_logprobs=8))
        for step, message in zip(ask.generate_logits(16), got, strict=True):
            want = step.log_softmax(-1)
            (choice,) = message.token_choices
            values = torch.tensor([one.logprob for one in choice.top])
            assert choice.top[0].id == want.argmax()
            assert torch.allclose(values, want.topk(8).values, atol=1e-3)
            assert torch.allclose(values, want[[one.id for one in choice.top]], atol=1e-3)


@TINY
@pytest.mark.parametrize("sampling", [{"ignore_eos": True}, HOT], ids=["greedy", "hot"])
def test_likeliest_tokens_after_a_failover_are_those_of_new_tokens(replica, asks, sampling):
    """Cut also within characters, whose bytes come from both replicas."""
    ask, options = asks["few"], sampling | {"max_tokens": 24, "logprobs": True, "top_logprobs": 2}
    whole = replica.decode(ask.with_(**options))
    for cut in range(0, 24, 5):
        after = replica.decode(ask.with_(emitted=ids(whole[:cut]), **options))
        assert [list(m.token_ids) for m in after] == [list(m.token_ids) for m in whole[cut:]]
        for message, alone in zip(after, whole[cut:], strict=True):
            (choice,), (want,) = message.token_choices, alone.token_choices
            assert [one.id for one in choice.top] == [one.id for one in want.top]
            assert [one.text for one in choice.top] == [one.text for one in want.top]
        assert token_bytes(whole[:cut]) + token_bytes(after) == token_bytes(whole)
    assert not replica.decode(ask.with_(max_tokens=2))[0].token_choices


@TINY
def test_sampling_is_repeatable_and_follows_its_seed(replica, asks):
    def draw(**more):
        return ids(replica.decode(asks["few"].with_(**({"max_tokens": 30} | WARM | more))))

    assert draw() == draw() != draw(seed=6)
    assert draw(top_k=1) == draw(top_p=1e-6) == asks["few"].generate(30)
    unseeded = asks["few"].with_(max_tokens=30, temperature=1.5, ignore_eos=True)
    assert ids(replica.decode(unseeded)) != ids(replica.decode(unseeded))


@pytest.mark.parametrize(
    "sampling", [{"max_tokens": 48, "ignore_eos": True}, {"max_tokens": 48, **WARM}, HOT], ids=["greedy", "warm", "hot"]
)
def test_another_replica_goes_on_exactly_where_one_stopped(replica, asks, model, sampling):
    """With the emitted ids the rest is what an undisturbed run gives: no token or character lost or doubled."""
    ask = asks["few"]
    whole = replica.decode(ask.with_(**sampling))
    for cut in range(0, 48, 3):
        before = whole[:cut]
        after = replica.decode(ask.with_(emitted=ids(before), **sampling))
        assert ids(after) == ids(whole)[cut:]
        assert text(before) + text(after) == text(whole)
        assert after[-1].stats.completion_tokens == 48
    assert text(whole) == model.tokenizer.decode(ids(whole), skip_special_tokens=True)


@TINY
def test_an_answer_that_was_complete_stays_complete(replica, asks, model):
    ask = asks["few"]
    whole = ids(replica.decode(ask.with_(max_tokens=8, ignore_eos=True)))
    (last,) = replica.decode(ask.with_(emitted=whole, max_tokens=8, ignore_eos=True))
    assert last.finish_reason == pb.FINISH_REASON_LENGTH and not last.token_ids and not last.text
    (last,) = replica.decode(ask.with_(emitted=[5, model.eos_token_ids[0]], max_tokens=8))
    assert last.finish_reason == pb.FINISH_REASON_STOP and last.stats.completion_tokens == 2


@TINY
def test_stop_strings_are_never_shown(replica, asks):
    sampling = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 3}
    whole = text(replica.decode(asks["text"].with_(**sampling)))
    middle = len(whole) // 2
    for stop in (whole[middle : middle + 9], whole[:1]):
        got = replica.decode(asks["text"].with_(stop=["\0no", stop], **sampling))
        assert text(got) == whole[: whole.index(stop)]
        assert got[-1].finish_reason == pb.FINISH_REASON_STOP


@TINY
def test_a_prefix_of_text_is_computed_once(replica, model):
    system = "yellow square below green triangle " * 6
    first, second, other = (
        replica.decode(question(model, 16, text, system, seed).with_(max_tokens=4, ignore_eos=True, salt=salt))
        for seed, (text, salt) in enumerate((("Where?", "a"), ("What colour?", "a"), ("Where?", "b")))
    )
    assert first[-1].stats.cached_tokens == other[-1].stats.cached_tokens == 0
    assert second[-1].stats.cached_tokens >= 32
    assert ids(second) == question(model, 16, "What colour?", system, 1).generate(4)


@TINY
def test_load_is_reported(replica, asks):
    assert replica.settles(**IDLE) == IDLE
    description = replica.stub.DescribeDecoder(pb.DescribeDecoderRequest())
    assert description.load.kv_bytes_capacity == description.load.kv_bytes_free > 60 * 2**20
    stream = replica.stub.Decode(asks["all"].with_(max_tokens=LENGTH, ignore_eos=True))
    next(stream)
    busy, used = (
        replica.stub.DescribeDecoder(pb.DescribeDecoderRequest()).load,
        replica.metric("fsr_decoder_kv_used_bytes"),
    )
    stream.cancel()
    per_token, length = description.cost.kv_bytes_per_token, len(asks["all"].prompt.token_ids)
    reserved = busy.kv_bytes_capacity - busy.kv_bytes_free
    assert busy.running == 1 and 0 <= reserved - (length + LENGTH) * per_token < 32 * per_token
    assert length * per_token <= used <= reserved


def answers_alone(replica, ask):
    """Whether the engine, which is idle by its own figures, generates for this caller and for nobody else."""
    before = replica.generated()
    assert len(ids(replica.decode(ask.with_(max_tokens=100, ignore_eos=True)))) == 100
    return replica.generated() - before < 150


def test_cancelling_frees_everything(replica, asks):
    streams = [replica.stub.Decode(asks["all"].with_(max_tokens=LENGTH, ignore_eos=True)) for _ in range(4)]
    for stream in streams:
        next(stream)
    assert replica.metric("fsr_decoder_running_requests") == 4
    before = replica.generated()
    for stream in streams:
        stream.cancel()
    assert replica.settles(**IDLE) == IDLE
    assert replica.generated() - before < 4 * LENGTH / 12  # what may be generated while the news travels
    assert answers_alone(replica, asks["few"])


@TINY
def test_a_deadline_frees_everything(replica, asks):
    """No machine finishes the answers within the first deadline. It gets longer until the answer has begun by then."""
    request = asks["all"].with_(max_tokens=LENGTH, ignore_eos=True)
    seconds, first = 0.15, None
    while first is None:
        seconds *= 2
        before = replica.generated()
        stream = replica.stub.Decode(request, timeout=seconds)
        with pytest.raises(grpc.RpcError) as caught:
            first = next(stream)
            list(stream)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert replica.settles(**IDLE) == IDLE
        assert replica.generated() - before < LENGTH - 1
    assert answers_alone(replica, asks["few"])


@TINY
def test_metrics_count_what_was_done(replica, asks):
    names = (
        'fsr_decoder_prompt_tokens_total{kind="visual"}',
        'fsr_decoder_prompt_tokens_total{kind="text"}',
        "fsr_decoder_generated_tokens_total",
        'fsr_decoder_requests_total{code="OK"}',
        "fsr_decoder_prefill_seconds_count",
        "fsr_decoder_decode_seconds_count",
        "fsr_decoder_queue_seconds_count",
    )
    request, words = asks["few"].with_(max_tokens=5, ignore_eos=True), len(asks["few"].prompt.token_ids) - 16
    replica.decode(request)
    before = [replica.metric(name) for name in names]
    replica.decode(request)
    assert [replica.metric(n) - b for n, b in zip(names, before, strict=True)] == [16, words, 5, 1, 1, 1, 1]
    assert ENGINE != "vllm" or replica.metric("vllm:generation_tokens_total") >= 10  # its own pass through


@TINY
@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"fingerprint": "f00"}, grpc.StatusCode.FAILED_PRECONDITION, "fingerprint"),
        ({"fingerprint": "f00", "ask": "text"}, grpc.StatusCode.FAILED_PRECONDITION, "fingerprint"),
        ({"fingerprint": ""}, grpc.StatusCode.FAILED_PRECONDITION, "fingerprint"),
        ({"sampling": {"temperature": math.nan}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.temperature"),
        ({"sampling": {"top_k": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_k"),
        ({"sampling": {"repetition_penalty": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.repetition_penalty"),
        ({"sampling": {"max_tokens": -1}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.max_tokens"),
        ({"sampling": {"top_logprobs": 2}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_logprobs"),
        ({"sampling": {"stop": [""]}}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.stop"),
        ({"emitted": [4_000_000]}, grpc.StatusCode.INVALID_ARGUMENT, "emitted_token_ids[0]"),
        ({"emitted": [5] * 25}, grpc.StatusCode.INVALID_ARGUMENT, "emitted_token_ids: 25"),
        (
            {"emitted": [5] * 40_000, "sampling": {"max_tokens": 2**31 - 1}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "emitted_token_ids: 40000 are more than",
        ),
        ({"request_id": "r" * 600}, grpc.StatusCode.INVALID_ARGUMENT, "request_id: 600 characters"),
        ({"cache_salt": "s" * 600}, grpc.StatusCode.INVALID_ARGUMENT, "cache_salt: 600 characters"),
        ({"fingerprint": "f" * 600}, grpc.StatusCode.INVALID_ARGUMENT, "fingerprint: 600 characters"),
        ({"text": "x" * 2**21}, grpc.StatusCode.INVALID_ARGUMENT, "messages: 20971"),
        ({"positions": [0] * 60}, grpc.StatusCode.INVALID_ARGUMENT, "images[0].positions: hold 60 numbers"),
        ({"messages": []}, grpc.StatusCode.INVALID_ARGUMENT, "messages"),
        ({"text": " yes</s>"}, grpc.StatusCode.INVALID_ARGUMENT, "messages[0]: text holds </s>"),
        ({"text": " ASSISTANT: yes"}, grpc.StatusCode.INVALID_ARGUMENT, "messages[0]: text holds ASSISTANT:"),
        ({"features": torch.ones(2, 7)}, grpc.StatusCode.INVALID_ARGUMENT, "images[0].features"),
        ({"features": torch.ones(1100, 160)}, grpc.StatusCode.INVALID_ARGUMENT, "1024"),
    ],
)
def test_bad_input_is_named(replica, asks, change, code, says):
    ask = asks[change.get("ask", "few")]
    request = ask.with_(emitted=change.get("emitted", ()), **change.get("sampling", {}))
    if "features" in change:
        request.images[0].features.CopyFrom(codec.encode(change["features"]))
    if "messages" in change:
        request.ClearField("messages")
    if "text" in change:
        request.messages[-1].parts.add(text=change["text"])
    if "positions" in change:
        request.images[0].positions.extend(change["positions"])
    for field in ("request_id", "cache_salt", "fingerprint"):
        setattr(request, field, change.get(field, getattr(request, field)))
    with pytest.raises(grpc.RpcError) as caught:
        replica.decode(request)
    assert caught.value.code() == code and says in caught.value.details()


def test_bytes_when_they_are_no_request_are_refused_counted_and_logged(replica, asks):
    before = replica.metric('fsr_decoder_requests_total{code="INVALID_ARGUMENT"}')
    ids_of_30_mib = b"\x32\x80\x80\x80\x0f" + b"\1" * (30 * 2**20)
    for count, data in enumerate((b"\xff" * 100, b"\x1a\0" * 2**20, ids_of_30_mib), 1):
        call = replica.channel.unary_stream("/fsr.v1.DecoderService/Decode")(data, timeout=300)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
        assert replica.metric('fsr_decoder_requests_total{code="INVALID_ARGUMENT"}') == before + count
        assert f'"reason": "{caught.value.details()}"' in replica.log.read_text()
    assert ids(replica.decode(asks["few"].with_(max_tokens=4, ignore_eos=True))) == asks["few"].generate(4)


def test_poison_is_refused_and_harms_nobody(replica, asks, model):
    shape = [16, model.info.feature_dim]
    request, poison = asks["few"].with_(max_tokens=4), torch.full(shape, float("nan"))
    request.images[0].features.CopyFrom(
        types_pb2.Tensor(dtype=types_pb2.DTYPE_FP32, shape=shape, data=poison.numpy().tobytes())
    )
    with pytest.raises(grpc.RpcError) as caught:
        replica.decode(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert ids(replica.decode(asks["few"].with_(max_tokens=24, ignore_eos=True))) == asks["few"].generate(24)


@TINY
def test_a_long_prompt_does_not_stall_a_running_answer(replica, asks, model):
    """It is prefilled in pieces, of 32 tokens here; the running answer gets a token after each. vLLM decides itself."""
    stream = replica.stub.Decode(asks["one"].with_(max_tokens=900, ignore_eos=True))
    next(stream)
    arrivals, long = [], question(model, 144, LONG * 12, seed=9)

    def read():
        with suppress(grpc.RpcError):  # cancelled below
            arrivals.extend(time.monotonic() for _ in stream)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(read)
        other = replica.stub.Decode(long.with_(max_tokens=2, ignore_eos=True))
        first = next(other)
        now = time.monotonic()
        answer = [first, *other]
        stream.cancel()
    assert ids(answer) == long.generate(2)
    if ENGINE == "transformers":
        during = sum(now - answer[-1].stats.prefill_seconds < at < now for at in arrivals)
        assert during >= len(long.prompt.token_ids) // 32 // 2  # messages are some time on their way
