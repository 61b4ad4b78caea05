"""A connection of uvicorn with bounds that uvicorn does not have: on a request's head, and on a body nobody reads."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fsr.gateway.http.errors import refusal

__all__ = ["HttpProtocol"]

_MAX_HEAD_BYTES = 64 * 2**10
_HEAD_SECONDS = 10.0
_UNREAD_SECONDS = 30.0  # for the rest of a body whose request has its response already; clients send it all
_UNSENT_SECONDS = 30.0  # for a client to read on; a stream of the chat API waits by its own deadline instead
_STREAMS = "/v1/chat/completions"


class HttpProtocol(HttpToolsProtocol):
    """Each request finds `abort` in its state: it ends the connection at once, with what is still unsent."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _body_complete = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        # asyncio does it for its own sockets only. Without it, each event waits 40 ms for the reader's delayed ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_timer(_HEAD_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_timer()
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
        elif self.transport.get_write_buffer_size():
            # Closing would wait for a client that never reads the rest.
            self._set_timer(_UNSENT_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.scope is not None and self.scope["path"] != _STREAMS:
            self._set_timer(_UNSENT_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._body_complete:
            self._clear_timer()

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

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._clear_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
