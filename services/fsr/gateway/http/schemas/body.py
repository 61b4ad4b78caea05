"""From the bytes of a request to its schema."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ValidationError

from fsr.common.errors import InvalidRequest
from fsr.gateway.options.settings import GatewaySettings

__all__ = ["count_marks", "max_marks", "max_values", "parse_json", "read_body", "validated"]


_Schema = TypeVar("_Schema", bound=BaseModel)
_OTHER_VALUES = 2048  # of a body, besides those that options bound
_RESUMED_TOKENS = 2**15  # of an answer that goes on
_MOST_FIELDS = 300  # of one object; the method's options are the largest
_MOST_CHARACTERS = 100  # of a caller's text in an error


def max_values(settings: GatewaySettings) -> int:
    """The most values of a body: three for each message, six for each part, one for each frame and for each token of an
    answer that goes on, and the others."""
    of_conversation = 3 * settings.max_messages + 6 * settings.max_parts + settings.max_frames
    return of_conversation + _RESUMED_TOKENS + _OTHER_VALUES


def max_marks(settings: GatewaySettings) -> int:
    """The most that `count_marks` may count in a body: its texts may consist of nothing else."""
    return settings.max_text_bytes + 2 * max_values(settings)


def count_marks(chunk: bytes) -> int:
    """How many values a piece of a JSON body has at most, and how many escapes, which are slow to parse.

    Some clients write each slash of base64 as an escape: these do not count.
    """
    return sum(map(chunk.count, (b",", b"[", b"{", b"\\"))) - chunk.count(b"\\/")


async def read_body(request: Request) -> bytearray:
    """The whole body. Not `request.body()`, which keeps it as long as the request lives: pictures make it large, and an
    answer may take minutes."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
    return raw


def parse_json(raw: bytes | bytearray, most: int) -> dict[str, Any]:
    """The object in a JSON body. Raises InvalidRequest for anything else, NaN and lone surrogates included, and for one
    with more than `most` values."""
    if raw.startswith(BOM_UTF8):  # some editors begin a file with it
        raw = raw[len(BOM_UTF8) :]
    try:
        body = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"body: is no JSON ({error}); send a JSON object in UTF-8") from error
    if not isinstance(body, dict):
        raise InvalidRequest("body: is no JSON object; send {...} with the request's fields")
    _check_size(body, most)
    return body


def _check_size(body: dict[str, Any], most: int) -> None:
    """Raises InvalidRequest for too many values in all, or in an object."""
    to_visit: list[Iterable[Any]] = [[body]]
    count = 0
    for values in to_visit:  # grows meanwhile
        for value in values:
            count += 1
            if count > most:
                raise InvalidRequest(f"body: has more than {most} values; send fewer messages, parts or frames")
            if isinstance(value, dict):
                if len(value) > _MOST_FIELDS:
                    raise InvalidRequest(f"body: an object in it has more than {_MOST_FIELDS} fields; send fewer")
                to_visit.append(value.values())
            elif isinstance(value, list):
                to_visit.append(value)


def validated(schema: type[_Schema], body: dict[str, Any]) -> _Schema:
    """The body as `schema`. Raises InvalidRequest, which names the first field that is wrong."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = _field(body, first["loc"])
        if first["type"].startswith("union_tag"):
            field += "." + first["ctx"]["discriminator"].strip("'")
        raise InvalidRequest(f"{field}: {_reason(first)}") from error


def _field(body: Any, location: Sequence[int | str]) -> str:
    """The path of a field: names and indices. What stands in a location for a choice of a union is left out."""
    path, value, element = "", body, False
    for i, step in enumerate(location):
        if element and isinstance(value, dict) and step in (value.get("type"), value.get("role")):
            element = False  # it says which kind of element this is
        elif isinstance(value, list) and isinstance(step, int):
            path, value, element = f"{path}[{step}]", value[step], True
        elif isinstance(value, dict) and (step in value or i == len(location) - 1):
            path, value = f"{path}.{step}" if path else str(step), value.get(step)
            element = False
    return path or "body"


def _reason(error: Any) -> str:
    """What is wrong, and the remedy."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "is missing; send it"
    if kind == "extra_forbidden":
        return "is unknown; check its spelling, or leave it out"
    if kind == "union_tag_invalid":
        return f"{context['tag'][:_MOST_CHARACTERS]!r} is not supported; use {context['expected_tags']}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a JSON object"
    if kind == "value_error":
        return str(context["error"])
    message = error["msg"]
    return message.removeprefix("Input ") if message.startswith("Input ") else message[0].lower() + message[1:]
