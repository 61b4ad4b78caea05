"""A connection of uvicorn with bounds that uvicorn does not have: on a request's head, on a body nobody reads, and on
the time in which a caller takes nothing of its answer."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
import uuid
from collections.abc import Callable
from http import HTTPStatus

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fsr.common.errors import NotReady
from fsr.gateway.http.errors import error_response, refusal

__all__ = ["HttpProtocol"]

_MOST_CONNECTIONS = 2048
_MAX_HEAD_BYTES = 64 * 2**10
_HEAD_SECONDS = 10.0
_UNREAD_SECONDS = 30.0  # for the rest of a body whose request has its response already; clients send it all


class HttpProtocol(HttpToolsProtocol):
    """Each request finds `abort` in its state: it ends the connection at once, with what is still unsent.

    A subclass sets `stall_seconds`, the longest time in which a caller takes nothing of an answer, and
    `on_slow_reader`, which is called when one is cut.
    """

    stall_seconds: float
    on_slow_reader: Callable[[], object]

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _body_complete = True
    _reader_timer: asyncio.TimerHandle | None = None
    _unsent = (0, 0)
    _taken_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        if len(self.connections) > _MOST_CONNECTIONS:
            self.app = _too_many_connections
        # asyncio does it for its own sockets only. Without it, each event waits 40 ms for the reader's delayed ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_timer(_HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_timer()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_in_head = self._in_head
        super().data_received(data)
        if began_in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"headers: are larger than {_MAX_HEAD_BYTES} bytes; send fewer or shorter ones")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._body_complete = True, 0, False
        self._set_timer(_HEAD_SECONDS, self._head_is_late)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._clear_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_complete = True
        self._clear_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._body_complete and not self._in_head:
            self._set_timer(_UNREAD_SECONDS, self.transport.abort)
        if self.transport.get_write_buffer_size():
            self._watch_reader()  # closing would wait for a caller who never reads the rest

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP."""
        self._refuse(400, "request: is no valid HTTP; check the client, and whether it should use https")

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(408, f"headers: did not arrive within {_HEAD_SECONDS:g} s; send them at once")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        response = refusal(status, reason, {"x-request-id": uuid.uuid4().hex, "connection": "close"})
        self.logger.warning("%s", reason)
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(response.body))
        self.transport.close()

    def _watch_reader(self) -> None:
        """Cuts the connection when nothing moves for `stall_seconds`, until all is sent."""
        if self._reader_timer is None:
            self._unsent, self._taken_at = self._unsent_bytes(), self.loop.time()
            self._reader_timer = self.loop.call_later(self.stall_seconds / 4, self._check_reader)

    def _check_reader(self) -> None:
        self._reader_timer, unsent, now = None, self._unsent_bytes(), self.loop.time()
        if not unsent[0]:
            return
        if unsent != self._unsent:
            self._unsent, self._taken_at = unsent, now
        elif now - self._taken_at >= self.stall_seconds:
            self.logger.warning("slow reader cut after %g s", self.stall_seconds)
            self.on_slow_reader()
            self.transport.abort()
            return
        self._reader_timer = self.loop.call_later(self.stall_seconds / 4, self._check_reader)

    def _unsent_bytes(self) -> tuple[int, int]:
        """In our buffer, and in the system's: with TLS, the first alone moves in large steps."""
        of_system = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size(), int.from_bytes(of_system, sys.byteorder)

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._clear_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    reason = f"http: {_MOST_CONNECTIONS} connections are open, the most that a gateway takes; close some, or try again"
    response = error_response(NotReady(reason, 1.0))
    response.headers["x-request-id"], response.headers["connection"] = uuid.uuid4().hex, "close"
    await response(scope, receive, send)
