"""What every gRPC service of ours does as a process: it opens its ports, reports its health, drains and stops."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import time
from collections.abc import Coroutine
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from fsr.common.network.ports import join, listening_address, open_socket
from fsr.common.process.draining import Draining
from fsr.common.wire.transport import server_options

__all__ = ["MetricsServer", "ServiceProcess", "check_port", "listen", "open_port", "probe_server", "stop_signal"]

log = structlog.get_logger()
_PROBE_BYTES = 4096  # of a request for health, which has the name of a service
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def stop_signal() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


def listen(host: str, port: int, option: str = "--port", backlog: int | None = None) -> socket.socket:
    """A socket that listens on a port, 0 for a free one. Exits with one line that names the option if it cannot."""
    try:
        return open_socket(host, port, backlog)
    except OSError as error:
        raise _cannot_listen(option, host, port, error) from error


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Exits with one line that names `option` if its port is taken. For a service that opens it after loading a model.

    The port is not kept open: a client that connects early must learn at once that nobody serves.
    """
    listen(host, port, option).close()


def open_port(
    server: grpc.aio.Server,
    host: str,
    port: int,
    option: str = "--port",
    credentials: grpc.ServerCredentials | None = None,
) -> str:
    """Opens a gRPC port, 0 for a free one; returns its address. Exits with one line that names `option` if it fails."""
    address = join(host, port)
    try:
        if credentials is None:
            opened = server.add_insecure_port(address)
        else:
            opened = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        check_port(host, port, option)  # gRPC does not give the reason
        reason = "perhaps it is in use" if credentials is None else "perhaps the certificate or its key cannot be read"
        raise SystemExit(
            f"error: {option}: cannot listen on {address} ({reason}); check it, or choose another"
        ) from error
    return join(host, opened)


def probe_server(health: HealthServicer, host: str, port: int | None) -> grpc.aio.Server | None:
    """A server of health alone, without TLS: Kubernetes' probes speak plain gRPC and have no client certificate."""
    if port is None:
        return None
    server = grpc.aio.server(options=server_options(_PROBE_BYTES))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    open_port(server, host, port, "--health-port")
    return server


class MetricsServer:
    """The Prometheus metrics of a registry over HTTP, on a thread of their own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Opens the port, 0 for a free one. Exits with one line if it is taken."""
        try:
            address = str(listening_address(host, port)[1][0])
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            raise _cannot_listen("--metrics-port", host, port, error) from error
        self.address = join(host, self._server.server_port)

    def close(self) -> None:
        """Ends the thread."""
        self._server.shutdown()
        self._thread.join()


def _cannot_listen(option: str, host: str, port: int, error: OSError) -> SystemExit:
    reason, remedy = os.strerror(error.errno or 0), "choose another port"
    if isinstance(error, socket.gaierror):
        reason = error.strerror or str(error)
        option, remedy = "--host", "check the name, or give an IP address of this machine"
    elif error.errno == errno.EADDRNOTAVAIL:
        option, remedy = "--host", "choose an address of this machine, or 0.0.0.0 for every interface"
    elif error.errno == errno.EAFNOSUPPORT:
        option, remedy = "--host", "this machine has no IPv6: choose an IPv4 address"
    elif error.errno == errno.EACCES:
        remedy = "choose a port above 1023, which needs no permission"
    return SystemExit(f"error: {option}: cannot listen on {join(host, port)} ({reason}); {remedy}")


class ServiceProcess:
    """One gRPC service from the start of its server to its end, with standard health and reflection.

    Its health is that of the service and of the whole server alike: set it with `set_serving`, before `run` too.
    """

    def __init__(self, server: grpc.aio.Server, service: str, draining: Draining, drain_seconds: float) -> None:
        """`service` is the full name of the service; its calls are counted by `draining`."""
        self._server, self._service = server, service
        self._draining, self._drain_seconds = draining, drain_seconds
        self.health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        reflection.enable_server_reflection([service, _HEALTH, reflection.SERVICE_NAME], server)

    async def set_serving(self, serving: bool) -> None:
        """Reports SERVING or NOT_SERVING; it has no effect once the service drains."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", self._service):
            await self.health.set(service, status)

    async def run(self, stop: asyncio.Event, background: Coroutine[Any, Any, None], **facts: object) -> None:
        """Serves until `stop` is set, then drains and stops the server.

        `background` runs until the server has stopped. If it fails, the service drains and stops too, and its error
        is raised in the end. `facts` go into the log line "serving".
        """
        await self._server.start()
        gc.collect()
        gc.freeze()  # what is there by now stays: a search of it for garbage would hold up all calls
        log.info("serving", **facts)
        task = asyncio.create_task(background)
        task.add_done_callback(lambda done: None if done.cancelled() or not done.exception() else stop.set())
        await stop.wait()
        log.info("draining", seconds=self._drain_seconds)
        await self.health.enter_graceful_shutdown()
        # The draining comes before gRPC's own stop. That one ends a call which has just arrived with CANCELLED, as if
        # its caller had left, and nobody tries such a call again.
        end = time.monotonic() + self._drain_seconds
        await self._draining.drain(self._drain_seconds)
        await self._server.stop(max(0.0, end - time.monotonic()))
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
