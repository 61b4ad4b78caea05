import numpy as np
import pytest

import fsr_core
from fsr.client import InvalidRequestError, Video
from fsr.client.budgets import budget_of
from fsr.client.requests import GenerateOptions, compress_request, generate_request
from fsr.v1 import types_pb2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": "/no/such/picture"}, "image: cannot read"),
        ({"images": "/"}, r"video: / holds no frames; put"),
        ({"images": "clip.mp4"}, r"video: cannot read clip.mp4 \(No such file"),
        ({"images": [3]}, "image: int is not a picture"),
        ({"images": None}, "image: NoneType is not a picture"),
        ({"question": None}, "question: expected a text, got NoneType"),
        ({"question": "\ud800"}, "question: is no Unicode text"),
        ({"method": 3}, "method: expected a text, got int"),
        ({"model": b"m"}, "model: expected a text, got bytes"),
        ({"images": Video([b"x", "/no/such/frame"])}, r"frames\[1\]: cannot read /no/such/frame"),
        ({"spread": "uneven"}, "spread: 'uneven' is unknown; use even or free"),
        ({"budget": True}, "budget: expected"),
        ({"budget": "16"}, "budget: expected a number of tokens"),
        ({"budget": 0}, "budget: 0 tokens is out of range"),
        ({"budget": 1.5}, "budget: 1.5 is no share of the tokens"),
        ({"budget": float("nan")}, "budget: nan is no share of the tokens"),
        ({"budget": 2**40}, "budget: 1099511627776 tokens is out of range"),
        ({"wire_dtype": "fp8"}, "wire_dtype: 'fp8' is unknown"),
        ({"options": {"rho": object()}}, "options: "),
        ({"options": [1]}, "options: "),
        ({"options": {"rho": float("nan")}}, r"^options\.rho: nan is no finite number; leave it out"),
        ({"options": {"kappa": 1, "list": [1, float("inf")]}}, r"^options\.list: inf is no finite number"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"max_tokens": 2**40}, r"max_tokens: 1099511627776 is out of range"),
    ],
)
def test_wrong_argument_is_refused_with_its_name(arguments, says):
    given = {"images": b"x", "question": "?"} | arguments
    with pytest.raises(InvalidRequestError, match=says):
        generate_request(given.pop("images"), given.pop("question"), **given)


def test_wrong_argument_of_a_compression_is_refused_with_its_name():
    with pytest.raises(InvalidRequestError, match="method: "):
        compress_request(b"x", "?", method=3)
    with pytest.raises(InvalidRequestError, match="instruction: expected a text"):
        compress_request(b"x", None)


@pytest.mark.parametrize(
    ("build", "name"),
    [(generate_request, "bugdet"), (compress_request, "bugdet"), (compress_request, "temperature")],
)
def test_unknown_argument_is_a_type_error_that_lists_the_known_ones(build, name):
    with pytest.raises(TypeError, match=rf"^{name}: unknown argument; use .*budget, spread"):
        build(b"x", "?", **{name: 1})


def test_every_option_reaches_the_request():
    compression = {"budget": 7, "spread": "free", "method": "random", "options": {"seed": 1}, "model": "m"}
    compression |= {"wire_dtype": "bf16"}
    sampling = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "repetition_penalty": 1.5, "seed": 0}
    sampling |= {"stop": ("a", "b"), "ignore_eos": True, "logprobs": True, "top_logprobs": 4}
    question = generate_request(b"x", "?", explain=True, **compression, **sampling)
    assert question.sampling == types_pb2.Sampling(**sampling) and question.sampling.HasField("seed")
    passage = compress_request(b"x", "?", explain=True, **compression)
    assert question.explain and passage.explain
    for request in (question, passage):
        assert request.budget == types_pb2.Budget(tokens=7, spread=types_pb2.SPREAD_FREE)
        assert (request.method.name, dict(request.method.options), request.model) == ("random", {"seed": 1}, "m")
        assert request.wire_dtype == types_pb2.DTYPE_BF16


def test_options_that_are_left_out_keep_their_defaults():
    question, passage = generate_request(b"x", "?"), compress_request(b"x", "?")
    assert question.sampling == types_pb2.Sampling() and not question.explain and not passage.explain
    for request in (question, passage):
        assert request.budget == types_pb2.Budget(spread=types_pb2.SPREAD_EVEN), "open: the policy chooses"
        assert (request.method.name, request.model, request.wire_dtype) == ("", "", types_pb2.DTYPE_UNSPECIFIED)


def test_one_stop_string_is_not_its_characters():
    assert list(generate_request(b"x", "?", stop="a\n").sampling.stop) == ["a\n"]


def test_none_leaves_every_argument_at_its_default():
    names = GenerateOptions.__annotations__.keys() - {"spread"}
    assert generate_request(b"x", "?", **dict.fromkeys(names)) == generate_request(b"x", "?")


@pytest.mark.parametrize(
    "budget",
    [
        *(1, 64, 2**31 - 1, np.int64(8), 1e-9, 0.11, 1.0, np.float32(0.5), "auto"),
        *(0, -1, 2**31, True, 0.0, 1.5, -0.1, float("nan"), float("inf"), "", "64", "all", [8]),
    ],
)
def test_budgets_of_the_sdk_and_of_compressed_are_the_same(budget):
    try:
        plain = fsr_core.Budget.of(budget)
    except ValueError as error:
        assert str(error).startswith("budget")
        with pytest.raises(InvalidRequestError, match=r"^budget: "):
            budget_of(budget)
        return
    message = budget_of(budget)
    expected = {"tokens": plain.tokens, "keep_ratio": plain.keep_ratio, "auto": types_pb2.AutoBudget()}
    kind = message.WhichOneof("kind")
    assert getattr(message, kind) == expected[kind] and plain.auto == (kind == "auto")
