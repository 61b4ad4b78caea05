"""Checks of a request that client and encoder share."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from google.protobuf.struct_pb2 import Struct, Value

__all__ = ["MAX_STOPS", "MAX_STOP_CHARACTERS", "SMALLEST_DIVISOR", "check_finite"]

MAX_STOPS = 16  # stop strings of a request
MAX_STOP_CHARACTERS = 256  # of each: a decoder compares the end of the answer with it at every token
# Of temperature and repetition penalty: smaller ones overflow logits. Just below 1e-6, which no float holds exactly.
SMALLEST_DIVISOR = 2.0**-20


def check_finite(options: Struct, name: str) -> None:
    """Raises ValueError, which names the option of `name`, if one is NaN or infinite: JSON has no such numbers."""
    for option, value in options.fields.items():
        for number in _numbers(value):
            if not isfinite(number):
                raise ValueError(f"{name}.{option}: {number} is no finite number; leave it out for the default")


def _numbers(value: Value) -> Iterator[float]:
    yield value.number_value
    for inner in (*value.list_value.values, *value.struct_value.fields.values()):
        yield from _numbers(inner)
