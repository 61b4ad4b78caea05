"""The limits of sampling options. The gateway checks them, and so does the decoder, which may have other callers."""

from __future__ import annotations

from math import isfinite

from fsr.common.errors import InvalidRequest
from fsr.v1 import types_pb2

__all__ = ["MAX_TOP_LOGPROBS", "check_sampling"]

MAX_TOP_LOGPROBS = 20  # tokens at each place of an answer, as in OpenAI's API

_MAX_STOPS = 16  # stop strings of a request
_MAX_STOP_CHARACTERS = 256  # of each: a decoder compares the end of the answer with it at every token
# Smaller divisors of the logits make them overflow. Just below 1e-6, which no float holds exactly.
_SMALLEST_DIVISOR = 2.0**-20
# Field, smallest value but 0 (which stands for the default), largest value, both as text, and the remedy.
_RANGES = (
    ("temperature", _SMALLEST_DIVISOR, 10, "[0, 10]", "0 is greedy"),
    ("top_p", 0.0, 1, "(0, 1]", "leave it unset for 1"),
    ("repetition_penalty", _SMALLEST_DIVISOR, 10, "(0, 10]", "leave it unset for 1"),
)


def check_sampling(sampling: types_pb2.Sampling) -> None:
    """Checks all that does not depend on a model. Raises InvalidRequest; it names the field and the remedy."""
    if sampling.max_tokens < 0:
        raise InvalidRequest(f"sampling.max_tokens: {sampling.max_tokens} is negative; ask for at least 1")
    if sampling.top_k < 0:
        raise InvalidRequest(f"sampling.top_k: {sampling.top_k} is negative; leave it unset to keep all tokens")
    for name, smallest, largest, range_text, remedy in _RANGES:
        value = getattr(sampling, name)
        if not (isfinite(value) and 0 <= value <= largest):
            raise InvalidRequest(f"sampling.{name}: {value} is outside {range_text}; {remedy}")
        if 0 < value < smallest:
            raise InvalidRequest(f"sampling.{name}: {value:.3g} is below 1e-6; {remedy}")
    if not 0 <= sampling.top_logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(
            f"sampling.top_logprobs: {sampling.top_logprobs} is outside [0, {MAX_TOP_LOGPROBS}]; ask for fewer tokens"
        )
    if sampling.top_logprobs and not sampling.logprobs:
        raise InvalidRequest(f"sampling.top_logprobs: {sampling.top_logprobs} has no effect alone; set logprobs too")
    if len(sampling.stop) > _MAX_STOPS:
        raise InvalidRequest(f"sampling.stop: {len(sampling.stop)} strings are more than {_MAX_STOPS}; send fewer")
    for i, text in enumerate(sampling.stop):
        if not text:
            raise InvalidRequest("sampling.stop: holds an empty string; leave it out")
        if len(text) > _MAX_STOP_CHARACTERS:
            size = f"{len(text)} characters are more than {_MAX_STOP_CHARACTERS}"
            raise InvalidRequest(f"sampling.stop[{i}]: {size}; send its beginning")
