"""`python -m services.gateway`"""

from __future__ import annotations

import asyncio

import grpc
import structlog
from fsr.v1 import gateway_pb2, gateway_pb2_grpc
from grpc_health.v1 import health_pb2
from prometheus_client import start_http_server

from services.gateway.metrics import Metrics
from services.gateway.replicas import Pools
from services.gateway.service import GatewayServicer
from services.gateway.settings import GatewaySettings
from services.telemetry import add_health_and_reflection, configure_logging, stop_signal
from services.transport import server_options

log = structlog.get_logger()


async def serve(settings: GatewaySettings) -> None:
    """Serves until a signal, then drains. Healthy once some model has both an encoder and a decoder."""
    stop = stop_signal()
    metrics = Metrics()
    pools = Pools(settings.encoders, settings.decoders, metrics)
    server = grpc.aio.server(options=server_options())
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(GatewayServicer(pools, metrics, settings), server)
    name = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].full_name
    health = add_health_and_reflection(server, [name])
    port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    exporter, thread = start_http_server(settings.metrics_port, settings.host, metrics.registry)
    await server.start()

    async def watch() -> None:
        while True:
            await pools.look()
            ready = any(pools.ready(model) for model in pools.models())
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for service in ("", name):
                await health.set(service, status)
            await asyncio.sleep(settings.discovery_seconds)

    watcher = asyncio.create_task(watch())
    log.info("serving", address=f"{settings.host}:{port}", metrics_port=settings.metrics_port)
    await stop.wait()
    log.info("draining", seconds=settings.drain_seconds)
    watcher.cancel()
    await health.enter_graceful_shutdown()
    await server.stop(settings.drain_seconds)
    await pools.close()
    exporter.shutdown()
    thread.join()


def main() -> None:
    settings = GatewaySettings.load()
    configure_logging("gateway", settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
