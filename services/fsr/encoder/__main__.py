"""`python -m fsr.encoder`: a Ray, local or joined, with the encoder's Serve application on it."""

from __future__ import annotations

import os
import signal
import socket
import threading

import structlog

from fsr.common.telemetry import configure_logging
from fsr.common.transport import MESSAGE_BYTES
from fsr.encoder.ingress import environment
from fsr.encoder.settings import EncoderSettings

log = structlog.get_logger()

_LOOPBACK = "127.0.0.1"
# Defaults for Ray's processes, set before Ray is imported.
_RAY_ENVIRONMENT = {
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",  # with a prefix, a replica's log lines would not be JSON
    "RAY_DEDUP_LOGS": "0",  # otherwise Ray folds the lines of several replicas into one
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MESSAGE_BYTES),  # otherwise 2 GiB, also of what a small message unpacks to
}


def main() -> None:
    settings = EncoderSettings.load()
    configure_logging("encoder", settings.log_level)
    os.environ.update(_RAY_ENVIRONMENT | dict(os.environ) | environment(settings))
    check_checkpoint(settings)
    _serve(settings)


def check_checkpoint(settings: EncoderSettings) -> None:
    """Exits with one line if the checkpoint cannot be used. Otherwise a replica would fail, with Ray's traceback."""
    from fsr_core.backbones import load_encoder

    try:
        load_encoder(settings.model, clip=settings.clip, device="meta", options=settings.family_options)
    except ValueError as error:
        raise SystemExit(f"error: --{'family-' if str(error).startswith('options') else ''}{error}") from error


def _serve(settings: EncoderSettings) -> None:
    """Runs the application until SIGTERM or SIGINT."""
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    from fsr.encoder.app import APPLICATION, build
    from fsr.encoder.grpc_service import SERVICER_FUNCTION
    from fsr.encoder.ray_start import start_ray

    start_ray(address=settings.ray_address or "local", log_to_driver=True, _metrics_export_port=settings.metrics_port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # in place of Ray's handlers, which would not shut Serve down first
        signal.signal(number, lambda *_: stop.set())
    http = _reserved_port()
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": _LOOPBACK, "port": http.getsockname()[1]},
            grpc_options=gRPCOptions(
                port=settings.port,
                grpc_servicer_functions=[SERVICER_FUNCTION],
            ),
        )
        serve.run(build(settings), name=APPLICATION, route_prefix="/")
        log.warning("open on every interface, without keys: close the port to all but gateways", port=settings.port)
        log.info("serving", address=f"{settings.host}:{settings.port}", model=settings.model)
        stop.wait()
        log.info("stopping")
    finally:
        serve.shutdown()
        ray.shutdown()
        http.close()


def _reserved_port() -> socket.socket:
    """A socket on a free port. Serve's proxy requires an HTTP port beside the gRPC port, though nobody calls it.

    While the socket is open, only a process that shares ports (SO_REUSEPORT), as Serve does, can bind the same one.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((_LOOPBACK, 0))
    return reserved


if __name__ == "__main__":
    main()
