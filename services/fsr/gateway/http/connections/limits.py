"""What a request must pass before the application sees it: its API key, its type, its size and the time it takes."""

from __future__ import annotations

import asyncio

import grpc
import structlog
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsr.common.errors import Unauthenticated, status_of
from fsr.gateway.auth import ApiKeys
from fsr.gateway.http.errors import error_response, refusal
from fsr.gateway.http.schemas.body import count_marks, max_marks
from fsr.gateway.metrics import Metrics
from fsr.gateway.settings import GatewaySettings

__all__ = ["Limits"]

log = structlog.get_logger()
_API = "/v1/"  # paths that need a key, if keys are required
_ENVELOPE_BYTES = 64 * 2**10  # of JSON around pictures and texts


class _Refused(Exception):
    """The request ends here, by this response. `code` is for metrics and log."""

    def __init__(self, code: grpc.StatusCode, reason: str, response: JSONResponse) -> None:
        super().__init__(reason)
        self.code, self.response = code, response


class Limits:
    """ASGI middleware. Counts and logs what it refuses, as the gateway does for gRPC."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, metrics: Metrics, settings: GatewaySettings) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._seconds = settings.http_body_seconds
        self._max_marks = max_marks(settings)
        self._max_bytes = settings.http_max_body_bytes or settings.max_message_bytes * 4 // 3 + _ENVELOPE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            await self._app(scope, self._bounded(receive), send)
        except _Refused as error:
            log.info("refused", interface="http", code=error.code.name, reason=str(error))
            rpc = _rpc(scope["path"])
            if rpc:
                self._metrics.requests.labels("http", rpc, error.code.name).inc()
            await error.response(scope, receive, send)

    def _check_headers(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["path"].startswith(_API):
            try:
                self._keys.caller_of(headers.get("authorization", ""))
            except Unauthenticated as error:
                raise _Refused(status_of(error), str(error), error_response(error)) from error
        if scope["method"] != "POST":
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _refused(415, f"content-type: {kind[:40]!r} is not supported; send application/json")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, bounded in bytes, and in time until the whole body is here."""
        end = asyncio.get_running_loop().time() + self._seconds
        received, marks, complete = 0, 0, False

        async def bounded() -> Message:
            nonlocal received, marks, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                reason = f"body: did not arrive within {self._seconds:g} s; send a smaller one, or faster"
                late = _refused(408, reason, grpc.StatusCode.DEADLINE_EXCEEDED)
                late.response.headers["connection"] = "close"  # there is no use in waiting for the rest
                raise late from error
            body = message.get("body", b"")
            received += len(body)
            marks += count_marks(body)
            complete = not message.get("more_body", False)
            if received > self._max_bytes:
                raise self._too_large()
            if marks > self._max_marks:  # a value takes two bytes here, and a hundred once it is parsed
                reason = f"has more than {self._max_marks} commas, brackets and escapes"
                raise _refused(400, f"body: {reason}; send fewer messages, parts or frames, or shorter texts")
            return message

        return bounded

    def _too_large(self) -> _Refused:
        return _refused(413, f"body: is larger than {self._max_bytes} bytes; scale the pictures down or send fewer")


def _refused(status: int, reason: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> _Refused:
    return _Refused(code, reason, refusal(status, reason))


def _rpc(path: str) -> str | None:
    """The rpc that metrics know a path as. Any other path is the caller's data, and no label."""
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return "ListModels"
    return {"/v1/chat/completions": "Generate", "/v1/compress": "Compress"}.get(path)
