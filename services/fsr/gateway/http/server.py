"""The HTTP server, in the event loop of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from fsr.common.network.ports import join
from fsr.common.process.lifecycle import listen
from fsr.common.telemetry.logs import adopt_logger
from fsr.gateway.http.connections.protocol import HttpProtocol
from fsr.gateway.http.connections.tls import https_context
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.telemetry.metrics import Metrics

__all__ = ["HttpServer"]

_KEEP_ALIVE_SECONDS = 75  # longer than load balancers and clients keep idle connections, so that they close first
_LAST_SECONDS = 2  # for responses to be read, after the gateway has drained


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The gateway handles signals itself."""
        yield


def _protocol(metrics: Metrics, settings: GatewaySettings) -> type[HttpProtocol]:
    class Protocol(HttpProtocol):
        stall_seconds = settings.stall_seconds
        on_slow_reader = metrics.slow_readers.labels("http").inc

    return Protocol


def _context_factory(settings: GatewaySettings) -> Callable[..., ssl.SSLContext] | None:
    """What makes uvicorn's context, None without TLS."""
    certificate = settings.certificate()
    return None if certificate is None else lambda config, default: https_context(certificate)


class HttpServer:
    """One port of HTTP, or of HTTPS if the gateway has a certificate."""

    def __init__(self, app: FastAPI, metrics: Metrics, settings: GatewaySettings, port: int) -> None:
        """Opens the port, 0 for a free one. Exits with one line if it is taken."""
        self._socket = listen(settings.host, port, "--http-port", backlog=1024)
        self.address = join(settings.host, self._socket.getsockname()[1])
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_protocol(metrics, settings),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_LAST_SECONDS,
                proxy_headers=False,
                server_header=False,
                ws="none",
                ssl_context_factory=_context_factory(settings),
            )
        )
        self._task: asyncio.Task[None] | None = None
        adopt_logger("uvicorn", "http server")

    async def start(self) -> None:
        """Returns when the server accepts connections."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended while it started")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Closes every connection that has no request, and waits for the others."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()
