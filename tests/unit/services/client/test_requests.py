import numpy as np
import pytest

from fsr.client import InvalidRequestError, Video
from fsr.client.requests import budget_of, compress_request, generate_request
from fsr.v1 import types_pb2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": "/no/such/picture"}, "image: cannot read"),
        ({"images": "/"}, r"image: / is a folder; Video.from_folder"),
        ({"images": "clip.mp4"}, r"image: clip.mp4 is a video file; .*ffmpeg"),
        ({"images": [3]}, "image: int is not a picture"),
        ({"images": None}, "image: NoneType is not a picture"),
        ({"method": 3}, "request: "),
        ({"images": Video([b"x", "/no/such/frame"])}, r"frames\[1\]: cannot read /no/such/frame"),
        ({"spread": "uneven"}, "spread: 'uneven' is unknown; use even or free"),
        ({"budget": True}, "budget: expected"),
        ({"budget": 2**40}, "budget: 1099511627776 tokens is out of range"),
        ({"wire_dtype": "fp8"}, "wire_dtype: 'fp8' is unknown"),
        ({"options": {"rho": object()}}, "options: "),
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


def test_wrong_method_of_a_compression_is_refused():
    with pytest.raises(InvalidRequestError, match="request: "):
        compress_request(b"x", "?", method=3)


@pytest.mark.parametrize(
    ("build", "name"),
    [(generate_request, "bugdet"), (compress_request, "bugdet"), (compress_request, "temperature")],
)
def test_unknown_option_is_a_type_error_that_lists_the_known_ones(build, name):
    with pytest.raises(TypeError, match=rf"^{name}: unknown option; use .*budget, spread"):
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


def test_numpy_numbers_are_budgets_too():
    assert budget_of(np.int64(8)).tokens == 8 and budget_of(np.float32(0.5)).keep_ratio == 0.5
