"""Errors as OpenAI's error object."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi.responses import JSONResponse

from fsr.common.errors import (
    Expired,
    Failed,
    Forbidden,
    InvalidRequest,
    Mismatch,
    NotReady,
    Overloaded,
    ServiceError,
    Unauthenticated,
    UnknownModel,
    shortened,
)
from fsr.gateway.http.field_names import field_of

__all__ = ["error_object", "error_response", "refusal"]

# HTTP status, and OpenAI's names of type and code.
_KINDS: dict[type[ServiceError], tuple[int, str, str | None]] = {
    InvalidRequest: (400, "invalid_request_error", None),
    Unauthenticated: (401, "authentication_error", "invalid_api_key"),
    Forbidden: (403, "permission_error", "model_not_allowed"),
    UnknownModel: (404, "not_found_error", "model_not_found"),
    Overloaded: (429, "rate_limit_error", "rate_limit_exceeded"),
    Failed: (500, "server_error", "internal_error"),
    Mismatch: (503, "server_error", "checkpoint_mismatch"),
    NotReady: (503, "server_error", "not_ready"),
    Expired: (504, "timeout_error", "deadline_exceeded"),
}
# What our messages begin with, and what is no field of a request's body.
_NO_FIELDS = {"authorization", "body", "content-type", "gateway", "headers", "http", "path", "request"}
_MOST_OF_A_FIELD = 300  # bytes
_RETRY_AFTER = 1.0  # seconds, where an error that passes does not say when


def error_object(error: ServiceError) -> dict[str, object]:
    """The body of the response, and the data of an event in a stream. Our messages begin with the field."""
    _, kind, code = _KINDS[type(error)]
    return _object(str(error), kind, code)


def error_response(error: ServiceError) -> JSONResponse:
    """The response to a failed request, with the time after which to try again if that can help."""
    headers = {}
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, NotReady | Overloaded):
        retry_after = _RETRY_AFTER
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))  # whole seconds, by the standard
        headers["retry-after-ms"] = str(round(retry_after * 1000))  # the official clients prefer it
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_object(error), _KINDS[type(error)][0], headers)


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to what is no request of this interface at all: a wrong path, method, type or size."""
    return JSONResponse(_object(message, "invalid_request_error", None), status, headers)


def _object(message: str, kind: str, code: str | None) -> dict[str, object]:
    field = field_of(message)
    param = None if field in _NO_FIELDS else field
    facts = {
        "message": shortened(message),
        "type": kind,
        "param": param and shortened(param, _MOST_OF_A_FIELD),
        "code": code,
    }
    return {"error": facts}
