"""The gateway's process: ports, health, the watch over replicas, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from prometheus_client import start_http_server

from fsr.common.telemetry import add_health_and_reflection, stop_signal
from fsr.common.transport import server_options
from fsr.gateway.admission import Admission
from fsr.gateway.auth import ApiKeys, Authentication
from fsr.gateway.metrics import Metrics
from fsr.gateway.pipeline import Requests
from fsr.gateway.routing.pools import Pools
from fsr.gateway.service import GatewayServicer
from fsr.gateway.settings import GatewaySettings
from fsr.v1 import gateway_pb2, gateway_pb2_grpc

__all__ = ["serve"]

log = structlog.get_logger()
_SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"]
_NAME = _SERVICE.full_name


def _credentials(settings: GatewaySettings) -> grpc.ServerCredentials | None:
    """Those of the certificate files, or None where TLS is off."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    client_ca = settings.tls_client_ca
    return grpc.ssl_server_credentials(
        [(settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())],
        root_certificates=client_ca.read_bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )


def _bind(server: grpc.aio.Server, settings: GatewaySettings) -> int:
    address, credentials = f"{settings.host}:{settings.port}", _credentials(settings)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        remedy = "is the port in use, or the certificate unreadable?"
        raise SystemExit(f"error: --port: cannot listen on {address}; {remedy}") from error


def _probe_server(health: HealthServicer, settings: GatewaySettings) -> grpc.aio.Server | None:
    """Health without TLS: Kubernetes' probes speak plain gRPC alone, and none has a client's certificate."""
    if settings.health_port is None:
        return None
    server = grpc.aio.server(options=server_options())
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"{settings.host}:{settings.health_port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise SystemExit(f"error: --health-port: cannot listen on {address}; is the port in use?") from error
    return server


async def _watch(pools: Pools, keys: ApiKeys, health: HealthServicer, every: float) -> None:
    """Healthy once some model has both an encoder and a decoder."""
    while True:
        keys.refresh()
        await pools.look()
        ready = any(pools.ready(model) for model in pools.models())
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", _NAME):
            await health.set(service, status)
        await asyncio.sleep(every)


async def serve(settings: GatewaySettings) -> None:
    """Serves until a signal, then drains."""
    stop = stop_signal()
    metrics, keys = Metrics(), ApiKeys(settings.api_keys, settings.api_keys_file)
    pools = Pools(settings, metrics)
    server = grpc.aio.server(
        interceptors=[Authentication(keys, _SERVICE, metrics)], options=server_options(settings.max_message_bytes)
    )
    admission = Admission(metrics, settings)
    servicer = GatewayServicer(Requests(pools, metrics, settings), admission)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, server)
    health = add_health_and_reflection(server, [_NAME])
    port, probes = _bind(server, settings), _probe_server(health, settings)
    try:
        exporter, thread = start_http_server(settings.metrics_port, settings.host, metrics.registry)
    except OSError as error:
        raise SystemExit(f"error: --metrics-port: {settings.metrics_port} cannot be opened ({error})") from error
    await server.start()
    if probes is not None:
        await probes.start()
    watcher = asyncio.create_task(_watch(pools, keys, health, settings.discovery_seconds))
    address = f"{settings.host}:{port}"
    log.info("serving", address=address, metrics_port=exporter.server_port, tls=settings.tls_cert is not None)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, watcher], return_when=asyncio.FIRST_COMPLETED)
    log.info("draining", seconds=settings.drain_seconds)
    await health.enter_graceful_shutdown()
    # By the admission first: gRPC's own stop tells a call that is on its way CANCELLED, which nobody tries again.
    end = time.monotonic() + settings.drain_seconds
    await admission.drain(settings.drain_seconds)
    await server.stop(max(0.0, end - time.monotonic()))
    if probes is not None:
        await probes.stop(None)
    stopping.cancel()
    watcher.cancel()
    await pools.close()
    exporter.shutdown()
    thread.join()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher  # raises what it died of, if it did
