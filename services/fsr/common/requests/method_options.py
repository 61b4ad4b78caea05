"""The default and the checks of a request's method that client, gateway and encoder share."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from google.protobuf.struct_pb2 import Struct, Value

__all__ = ["DEFAULT_METHOD", "MAX_VALUES", "check_options"]

DEFAULT_METHOD = "fsr"  # of a request that names none; the same as fsr_core.DEFAULT_METHOD, which clients do not have
MAX_VALUES = 256  # of all options of a method, those in lists and objects too
_MAX_CHARACTERS = 512  # of a name or a text among them


def check_options(options: Struct, name: str) -> None:
    """Checks the options of a method before anything is made of them. `name` is that of the field.

    Raises ValueError, which begins with the field, for too many values, a text that is too long, and for a number that
    is NaN or infinite: JSON has no such numbers.
    """
    if len(options.fields) > MAX_VALUES:
        raise ValueError(f"{name}: hold more than {MAX_VALUES} values; send fewer")
    values = 0
    for option, value in options.fields.items():
        if len(option) > _MAX_CHARACTERS:
            raise ValueError(f"{name}: a name of {len(option)} characters is none of an option; check the spelling")
        for part in _parts(value):
            values += 1
            if values > MAX_VALUES:
                raise ValueError(f"{name}.{option}: with it, options hold more than {MAX_VALUES} values; send fewer")
            if isinstance(part, str) and len(part) > _MAX_CHARACTERS:
                raise ValueError(f"{name}.{option}: a text has more than {_MAX_CHARACTERS} characters; shorten it")
            if isinstance(part, float) and not isfinite(part):
                raise ValueError(f"{name}.{option}: {part} is no finite number; leave it out for the default")


def _parts(value: Value) -> Iterator[float | str | None]:
    """Itself, and what is in it: numbers, texts and names; None for anything else."""
    match value.WhichOneof("kind"):
        case "number_value":
            yield value.number_value
        case "string_value":
            yield value.string_value
        case "list_value":
            yield None
            for inner in value.list_value.values:
                yield from _parts(inner)
        case "struct_value":
            yield None
            for name, inner in value.struct_value.fields.items():
                yield name
                yield from _parts(inner)
        case _:
            yield None
