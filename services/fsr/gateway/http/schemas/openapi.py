"""/openapi.json: the requests, which the application reads by itself, put beside what FastAPI knows of the routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fsr.gateway.http.schemas.requests import ChatRequest, CompressRequest
from fsr.gateway.http.schemas.responses import ChatChunk, Error

__all__ = ["CHAT_EXAMPLE", "COMPRESS_EXAMPLE", "ERRORS", "EVENTS", "openapi_schema", "request_body"]

_REF = "#/components/schemas/{model}"
_OTHERS = (ChatRequest, CompressRequest, ChatChunk)
_REASONS = {
    400: "the message names the field and the remedy",
    401: "no API key, or an unknown one",
    403: "the API key may not use this model",
    404: "unknown model",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is no application/json",
    429: "too many requests; Retry-After",
    503: "no replica answers, or the gateway shuts down; Retry-After",
    504: "the deadline has passed",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": reason} for status, reason in _REASONS.items()
}
"""Responses of every route that takes a request."""
EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"$ref": _REF.format(model=ChatChunk.__name__)}}}
_PICTURE = (  # a red square
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mP8z0AaYGIY1TCqYdhqAABALgEfFO4+AgAAAABJRU5ErkJggg=="
)
CHAT_EXAMPLE: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": _PICTURE}},
                {"type": "text", "text": "What colour is it?"},
            ],
        }
    ],
    "max_completion_tokens": 16,
    "fsr": {"budget": 64},
}
COMPRESS_EXAMPLE: dict[str, Any] = {
    "images": [_PICTURE],
    "instruction": "What colour is it?",
    "fsr": {"budget": 64, "explain": True},
}


def request_body(schema: type[BaseModel], **examples: dict[str, Any]) -> dict[str, Any]:
    """What a route says of the body that it reads itself."""
    media = {
        "schema": {"$ref": _REF.format(model=schema.__name__)},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": media}}}


def openapi_schema(app: FastAPI, keys_required: bool) -> dict[str, Any]:
    """The description of all routes of the application."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    others = models_json_schema([(model, "validation") for model in _OTHERS], ref_template=_REF)
    components = schema["components"]
    components["schemas"] |= others[1]["$defs"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "an API key"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                operation["security"] = [{"key": []}] if keys_required else [{}, {"key": []}]
    return schema
