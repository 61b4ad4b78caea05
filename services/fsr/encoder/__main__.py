"""`python -m fsr.encoder`"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading

import structlog

from fsr.common.telemetry import configure_logging
from fsr.encoder.ingress import environment
from fsr.encoder.settings import EncoderSettings

log = structlog.get_logger()


_LOOPBACK = "127.0.0.1"


def _held_port() -> socket.socket:
    """Serve's proxy insists on an HTTP port beside the gRPC one; nobody calls it, so any will do.

    While the socket is open nobody gets the port but Serve, which shares it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((_LOOPBACK, 0))
    return held


def main() -> None:
    settings = EncoderSettings.load()
    configure_logging("encoder", settings.log_level)
    stop = threading.Event()
    # A local Ray learns of the end from us, in order; its own handlers would race with ours.
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")  # else a replica's lines are no JSON any more
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else lines of several replicas are folded into one
    os.environ.update(environment(settings))
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    from fsr.encoder.app import APPLICATION, build
    from fsr_core.backbones import load_encoder

    try:  # what is wrong with the checkpoint is told here and now, not from within a replica
        load_encoder(settings.model, clip=settings.clip, device="meta", options=settings.family_options)
    except ValueError as error:
        raise SystemExit(f"error: --{'family-' if str(error).startswith('options') else ''}{error}") from error
    ray.init(
        address=settings.ray_address or "local",
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=True,
        _metrics_export_port=settings.metrics_port,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    http = _held_port()
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": _LOOPBACK, "port": http.getsockname()[1]},
            grpc_options=gRPCOptions(
                port=settings.port,
                grpc_servicer_functions=["fsr.v1.encoder_pb2_grpc.add_EncoderServiceServicer_to_server"],
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


if __name__ == "__main__":
    main()
