"""Errors as OpenAI's error object."""

from __future__ import annotations

import math
import re
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
)

__all__ = ["error_object", "error_response", "error_status"]

# HTTP status and OpenAI's name of the type.
_KINDS: dict[type[ServiceError], tuple[int, str]] = {
    InvalidRequest: (400, "invalid_request_error"),
    Unauthenticated: (401, "authentication_error"),
    Forbidden: (403, "permission_error"),
    UnknownModel: (404, "not_found_error"),
    Overloaded: (429, "rate_limit_error"),
    Failed: (500, "server_error"),
    Mismatch: (503, "server_error"),
    NotReady: (503, "server_error"),
    Expired: (504, "timeout_error"),
}
_FIELD = re.compile(r"([a-z_][\w.\[\]]*): ")


def error_status(error: ServiceError) -> int:
    """The HTTP status of an error."""
    return _KINDS[type(error)][0]


def error_object(error: ServiceError) -> dict[str, object]:
    """The body of the response, and the data of an event in a stream. Our messages begin with the field."""
    field = _FIELD.match(str(error))
    return {
        "error": {
            "message": str(error),
            "type": _KINDS[type(error)][1],
            "param": field[1] if field else None,
            "code": None,
        }
    }


def error_response(error: ServiceError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to a failed request; `Retry-After` in whole seconds if the error says when to try again."""
    all_headers = dict(headers or {})
    if error.retry_after is not None:
        all_headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        all_headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_object(error), error_status(error), all_headers)
