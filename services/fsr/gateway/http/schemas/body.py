"""From the bytes of a request to its schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ValidationError

from fsr.common.errors import InvalidRequest
from fsr.gateway.http.field_names import shortened

__all__ = ["parse_json", "read_body", "validated"]

_Schema = TypeVar("_Schema", bound=BaseModel)


async def read_body(request: Request) -> bytearray:
    """The whole body. Not `request.body()`, which keeps it as long as the request lives: pictures make it large, and an
    answer may take minutes."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
    return raw


def parse_json(raw: bytes | bytearray) -> dict[str, Any]:
    """The object in a JSON body. Raises InvalidRequest for anything else, NaN and lone surrogates included."""
    try:
        body = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"body: is no JSON ({error}); send a JSON object in UTF-8") from error
    if not isinstance(body, dict):
        raise InvalidRequest("body: is no JSON object; send {...} with the request's fields")
    return body


def validated(schema: type[_Schema], body: dict[str, Any]) -> _Schema:
    """The body as `schema`. Raises InvalidRequest, which names the first field that is wrong."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = _field(body, first["loc"])
        if first["type"].startswith("union_tag"):
            field += "." + first["ctx"]["discriminator"].strip("'")
        raise InvalidRequest(shortened(f"{field}: {_reason(first)}")) from error


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
        return f"{context['tag']!r} is not supported; use {context['expected_tags']}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a JSON object"
    if kind == "value_error":
        return str(context["error"])
    message = error["msg"]
    return message.removeprefix("Input ") if message.startswith("Input ") else message[0].lower() + message[1:]
