"""Responses that live as long as their reader: work for a caller who hangs up ends at once, and a request ends when its
caller has the whole response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["ConnectedResponse", "send_whole"]

_PIECE_BYTES = 64 * 2**10  # as much as the server holds before it waits for the reader


class ConnectedResponse(Response):
    """Does the work of a request and sends what comes of it, all in one task, so in one context.

    The work is cancelled when the caller hangs up.
    """

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        """`work` sends the messages of the response. An error before the first one becomes an error response."""
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work, gone = asyncio.ensure_future(self._work(send)), asyncio.ensure_future(_hang_up(receive))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            # An error holds this frame. With the task that holds the error it would be a circle, and the request in it.
            del work, gone


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_whole(response: Response, send: Send) -> None:
    """Sends a response in pieces, and so returns when the caller has taken all but the last of them."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    for start in range(0, len(response.body), _PIECE_BYTES):
        piece = bytes(response.body[start : start + _PIECE_BYTES])
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
