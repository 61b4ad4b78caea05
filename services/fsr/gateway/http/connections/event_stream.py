"""Server-sent events, as OpenAI's API has them: data alone, one JSON object an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from starlette.types import Message, Send

from fsr.common.errors import Expired, Failed, ServiceError
from fsr.gateway.http.errors import error_object
from fsr.gateway.requests.deadline import Deadline

__all__ = ["EventStream"]

log = structlog.get_logger()

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)
_LAST_SECONDS = 1.0  # to send what says that the deadline has passed


class EventStream:
    """A stream that begins with its first event. A reader who stops reading loses the connection after a while, and
    is waited for until the deadline at the longest."""

    def __init__(self, send: Send, abort: Callable[[], None], deadline: Deadline) -> None:
        """`abort` ends the connection with what is still unsent."""
        self._send, self._abort, self._deadline = send, abort, deadline
        self.started = False
        self._stuck = False  # the reader did not read until the deadline

    async def event(self, data: dict[str, Any]) -> None:
        """Raises Expired if the reader does not take it before the deadline."""
        await self._write(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())

    async def done(self) -> None:
        """The end of a complete answer. Raises Expired."""
        await self._write(b"[DONE]")
        await self._close()

    async def fail(self, error: Exception) -> None:
        """Ends a stream that has begun by an error event, without [DONE]: the answer is not complete."""
        if not isinstance(error, ServiceError):
            log.exception("unexpected", rpc="Generate")
            error = Failed("Generate: failed unexpectedly; the service's log says more")
        if not self._stuck:
            with suppress(Expired):
                await self.event(error_object(error))
                await self._close()
        if self._stuck:
            self._abort()
            await asyncio.sleep(0)  # the connection is lost when this returns, so the server expects no more

    async def _close(self) -> None:
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            await self._put({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        await self._put({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(max(_LAST_SECONDS, self._deadline.seconds_left)):
                await self._send(message)
        except TimeoutError as error:
            self._stuck = True
            raise Expired("deadline: has passed before the events were read; read them faster") from error
