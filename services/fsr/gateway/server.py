"""The gateway's process: its parts put together, and the watch over keys and replicas."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import structlog

from fsr.common.network.certificates import server_credentials
from fsr.common.network.ports import is_loopback
from fsr.common.process.lifecycle import MetricsServer, ServiceProcess, open_port, probe_server, stop_signal
from fsr.common.telemetry.spans import Tracer
from fsr.common.wire.incoming import IncomingMessages
from fsr.common.wire.slow_readers import SlowReaders
from fsr.common.wire.transport import server_options
from fsr.gateway.admission import Admission
from fsr.gateway.callers.auth import ApiKeys, Authentication
from fsr.gateway.callers.keys_file import KeysFileError
from fsr.gateway.canary.export import CanaryExport
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.routing.pools import Pools
from fsr.gateway.service import GatewayServicer
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.validation import max_fields
from fsr.v1 import gateway_pb2, gateway_pb2_grpc

if TYPE_CHECKING:
    from fsr.gateway.http.server import HttpServer

__all__ = ["serve"]

log = structlog.get_logger()
_SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"]


def _messages(metrics: Metrics, settings: GatewaySettings) -> IncomingMessages:
    """What reads the requests, and counts those that it refuses."""

    def count(rpc: str, code: str) -> None:
        metrics.requests.labels("grpc", rpc, code).inc()

    return IncomingMessages(_SERVICE, count, seconds=settings.message_seconds, max_fields=max_fields(settings))


def _http_server(
    pipeline: Pipeline, admission: Admission, keys: ApiKeys, metrics: Metrics, settings: GatewaySettings
) -> HttpServer | None:
    """The HTTP interface over the same parts, or None when it is off; then its libraries are not loaded either."""
    if settings.http_port is None:
        return None
    from fsr.gateway.http.app import http_app
    from fsr.gateway.http.server import HttpServer

    return HttpServer(http_app(pipeline, admission, keys, metrics, settings), metrics, settings, settings.http_port)


def _keys(settings: GatewaySettings) -> ApiKeys:
    """The keys and their policies. Exits with one line if their file cannot be used."""
    try:
        return ApiKeys(settings.api_keys, settings.api_keys_file, settings.policy)
    except KeysFileError as error:
        raise SystemExit(f"error: --api-keys-file: {settings.api_keys_file}: {error}") from error


def _canary_export(metrics: Metrics, settings: GatewaySettings) -> CanaryExport | None:
    """None if it is off. Exits with one line if its folder cannot be used."""
    folder = settings.canary_export
    if folder is None:
        return None
    try:
        export = CanaryExport(folder, settings.canary_export_bytes, metrics)
    except OSError as error:
        raise SystemExit(f"error: --canary-export: cannot write into {folder} ({error.strerror})") from error
    log.warning("callers' pictures and questions are written for fsr calibrate", folder=str(folder))
    return export


async def _watch(pools: Pools, keys: ApiKeys, process: ServiceProcess, every: float) -> None:
    """Refreshes keys and replicas every so many seconds. The gateway serves while some model has both halves."""
    while True:
        keys.refresh()
        await pools.refresh()
        await process.set_serving(any(pools.ready(model) for model in pools.models()))
        await asyncio.sleep(every)


async def serve(settings: GatewaySettings, tracer: Tracer) -> None:
    """Serves until a signal, then drains and stops."""
    stop = stop_signal()
    metrics, keys = Metrics(), _keys(settings)
    pools = Pools(settings, metrics)
    readers = SlowReaders(_SERVICE.full_name, settings.stall_seconds, metrics.slow_readers.labels("grpc").inc)
    server = grpc.aio.server(
        interceptors=[Authentication(keys, _SERVICE, metrics), _messages(metrics, settings), readers],
        options=server_options(settings.max_message_bytes, settings.max_streams),
    )
    admission = Admission(keys, metrics, settings, tracer)
    pipeline = Pipeline(pools, metrics, settings, _canary_export(metrics, settings))
    servicer = GatewayServicer(pipeline, admission)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, server)
    process = ServiceProcess(server, _SERVICE.full_name, admission.draining, settings.drain_seconds)
    certificate = settings.certificate()
    credentials = server_credentials(certificate) if certificate is not None else None
    address = open_port(server, settings.host, settings.port, credentials=credentials)
    if keys.required and certificate is None and not (settings.insecure or is_loopback(settings.host)):
        log.warning(
            "API keys come in plain text from other machines",
            remedy="set --tls-cert and --tls-key; --insecure on a trusted network, or behind what ends TLS",
        )
    probes = probe_server(process.health, settings.host, settings.health_port)
    http = _http_server(pipeline, admission, keys, metrics, settings)
    exporter = MetricsServer(settings.host, settings.metrics_port, metrics.registry)
    await process.set_serving(False)
    if probes is not None:
        await probes.start()
    if http is not None:
        await http.start()
    try:
        await process.run(
            stop,
            _watch(pools, keys, process, settings.discovery_seconds),
            address=address,
            http=http.address if http else None,
            metrics=exporter.address,
            traces=tracer.active,
            tls=certificate is not None,
            replica_tls=settings.replica_tls_cert is not None,
        )
    finally:
        if http is not None:
            await http.stop()
        if probes is not None:
            await probes.stop(None)
        await pools.close()
        exporter.close()
