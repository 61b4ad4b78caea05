"""Sampling options that gateway and decoder refuse."""

from math import inf, nan

import pytest

from fsr.common.errors import InvalidRequest
from fsr.common.requests.sampling_limits import check_sampling
from fsr.v1 import types_pb2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "sampling.max_tokens: -1 is negative"),
        ({"top_k": -1}, "sampling.top_k: -1 is negative"),
        *(({name: value}, f"sampling.{name}: {value} is outside")
          for name in ("temperature", "top_p", "repetition_penalty") for value in (-1.0, 11.0, inf, nan)),
        ({"temperature": 9e-7}, "sampling.temperature: 9e-07 is below 1e-6; 0 is greedy"),
        ({"repetition_penalty": 9e-7}, "sampling.repetition_penalty: 9e-07 is below 1e-6; leave it unset for 1"),
        ({"logprobs": True, "top_logprobs": -1}, r"sampling.top_logprobs: -1 is outside \[0, 20\]; ask for fewer"),
        ({"logprobs": True, "top_logprobs": 21}, r"sampling.top_logprobs: 21 is outside \[0, 20\]; ask for fewer"),
        ({"top_logprobs": 5}, "sampling.top_logprobs: 5 has no effect alone; set logprobs too"),
        ({"stop": ["a"] * 17}, "sampling.stop: 17 strings are more than 16"),
        ({"stop": ["a", ""]}, "sampling.stop: holds an empty string"),
        ({"stop": ["a", "b" * 257]}, r"sampling.stop\[1\]: 257 characters are more than 256"),
    ],
)  # fmt: skip
def test_check_sampling_when_an_option_is_outside_its_range_names_it(options, message):
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        check_sampling(types_pb2.Sampling(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 1, "top_k": 1, "temperature": 10, "top_p": 1, "repetition_penalty": 10},
        {"logprobs": True, "top_logprobs": 20},
        {"temperature": 1e-6, "top_p": 1e-9, "repetition_penalty": 1e-6, "stop": ["a" * 256] * 16},
    ],
)
def test_check_sampling_when_options_are_within_bounds_passes(options):
    check_sampling(types_pb2.Sampling(**options))
