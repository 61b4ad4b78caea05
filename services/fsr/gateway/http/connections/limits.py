"""What a request must pass before the application sees it: its API key, its type, its size and the time it takes."""

from __future__ import annotations

import asyncio

import grpc
import structlog
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsr.common.errors import Overloaded, Unauthenticated, status_of
from fsr.common.requests.retry_hints import RetryHints
from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.http.connections.bodies import Bodies, Body
from fsr.gateway.http.errors import error_response, refusal
from fsr.gateway.http.schemas.body import count_marks, max_marks
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.telemetry.metrics import Metrics

__all__ = ["Limits"]

log = structlog.get_logger()
_API = "/v1/"  # paths that need a key, if keys are required
_WITH_BODY = {"Generate", "Compress"}
_RETRY_AFTER = 0.5  # seconds
_ENVELOPE_BYTES = 64 * 2**10  # of JSON around pictures and texts


class _Refused(Exception):
    """The request ends here, by this response. `code` is for metrics and log."""

    def __init__(self, code: grpc.StatusCode, reason: str, response: JSONResponse) -> None:
        super().__init__(reason)
        self.code, self.response = code, response


class Limits:
    """ASGI middleware. Counts and logs what it refuses, as the gateway does for gRPC.

    Each request finds its `body` in its state, to be freed when the request has a slot.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, metrics: Metrics, settings: GatewaySettings) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._seconds = settings.http_body_seconds
        self._max_marks = max_marks(settings)
        self._max_bytes = settings.http_max_body_bytes or settings.max_message_bytes * 4 // 3 + _ENVELOPE_BYTES
        self._bodies = Bodies(max(settings.http_max_bodies_bytes, self._max_bytes))
        self._hints = RetryHints(_RETRY_AFTER, settings.http_body_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = scope.setdefault("state", {})["body"] = Body(self._bodies)
        try:
            self._check_headers(scope)
            await self._app(scope, self._bounded(receive, body), send)
        except _Refused as error:
            log.info("refused", interface="http", code=error.code.name, reason=str(error))
            rpc = _rpc(scope["path"])
            if rpc:
                self._metrics.requests.labels("http", rpc, error.code.name).inc()
            await error.response(scope, receive, send)
        finally:
            body.free()

    def _check_headers(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["path"].startswith(_API):
            try:
                self._keys.caller_of(headers.get("authorization", ""))
            except Unauthenticated as error:
                raise _Refused(status_of(error), str(error), error_response(error)) from error
        if scope["method"] != "POST" or _rpc(scope["path"]) not in _WITH_BODY:
            return  # no route takes its body
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _refused(415, f"content-type: {kind[:40]!r} is not supported; send application/json")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive, body: Body) -> Receive:
        """`receive`, bounded in bytes, alone and with all others, and in time until the whole body is here."""
        end = asyncio.get_running_loop().time() + self._seconds
        received, marks, complete = 0, 0, False

        async def bounded() -> Message:
            nonlocal received, marks, complete
            if complete:
                return await receive()
            try:
                async with body.waiting_until(end):
                    message = await receive()
            except TimeoutError as error:
                if body.refused:
                    raise self._no_room() from error
                reason = f"body: did not arrive within {self._seconds:g} s; send a smaller one, or faster"
                late = _refused(408, reason, grpc.StatusCode.DEADLINE_EXCEEDED)
                late.response.headers["connection"] = "close"  # there is no use in waiting for the rest
                raise late from error
            data = message.get("body", b"")
            received += len(data)
            marks += count_marks(data)
            complete = not message.get("more_body", False)
            if received > self._max_bytes:
                raise self._too_large()
            if marks > self._max_marks:  # a value takes two bytes here, and a hundred once it is parsed
                reason = f"has more than {self._max_marks} commas, brackets and escapes"
                raise _refused(400, f"body: {reason}; send fewer messages, parts or frames, or shorter texts")
            body.grow(len(data), complete)
            if body.refused:
                raise self._no_room()
            return message

        return bounded

    def _no_room(self) -> _Refused:
        self._metrics.refused.labels("bodies").inc()
        reason = "body: arrives while others fill the gateway's room for bodies; send it again, or faster"
        error = Overloaded(reason, self._hints.next(0))
        response = error_response(error)
        response.headers["connection"] = "close"  # there is no use in waiting for the rest
        return _Refused(status_of(error), reason, response)

    def _too_large(self) -> _Refused:
        return _refused(413, f"body: is larger than {self._max_bytes} bytes; scale the pictures down or send fewer")


def _refused(status: int, reason: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> _Refused:
    return _Refused(code, reason, refusal(status, reason))


def _rpc(path: str) -> str | None:
    """The rpc that metrics know a path as. Any other path is the caller's data, and no label."""
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return "ListModels"
    return {"/v1/chat/completions": "Generate", "/v1/compress": "Compress"}.get(path)
