"""An id for every response, and an error object for every exception."""

from __future__ import annotations

import uuid

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsr.common.errors import Failed
from fsr.common.process.draining import Draining
from fsr.gateway.http.errors import error_response

__all__ = ["RequestIds"]

log = structlog.get_logger()


class RequestIds:
    """The outermost ASGI middleware.

    A request that the gateway admitted has its id in the logs of all services; any other gets one here. While the
    gateway drains, connections end with their response, so that the caller's next one reaches another gateway.
    """

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app, self._draining = app, draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, started = scope.setdefault("state", {}), False
        state["request_id"] = uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=state["request_id"])

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                if self._draining.active:
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # before its body was here
        except Exception:
            log.exception("unexpected", path=scope["path"])
            if started:
                raise
            error = Failed("request: failed unexpectedly; the service's log says more")
            await error_response(error)(scope, receive, send_with_id)
