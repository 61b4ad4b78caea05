"""A response that lives as long as its reader: work for a caller who hangs up ends at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["ConnectedResponse"]


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
