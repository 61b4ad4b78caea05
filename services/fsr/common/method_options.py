"""The default and the checks of a request's method that client, gateway and encoder share."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from google.protobuf.struct_pb2 import Struct, Value

__all__ = ["DEFAULT_METHOD", "check_finite"]

DEFAULT_METHOD = "fsr"  # of a request that names none; the same as fsr_core.DEFAULT_METHOD, which clients do not have


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
