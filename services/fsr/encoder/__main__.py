"""`python -m fsr.encoder`: a Ray, local or joined, with the encoder's Serve application on it."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading

import structlog

from fsr.common.network.ports import is_loopback, join
from fsr.common.process.environment import (
    exit_on,
    metrics_folder_problem,
    ray_folder_problem,
    shared_memory_problem,
    small_shared_memory,
)
from fsr.common.process.lifecycle import check_port
from fsr.common.telemetry.logs import configure_logging
from fsr.common.telemetry.tracing import traces
from fsr.encoder.serving.ingress import check_ingress
from fsr.encoder.serving.ray_environment import ray_environment
from fsr.encoder.serving.ray_watch import adopt_orphans, ends_with_ray, starts_again
from fsr.encoder.serving.serve_ports import check_tls, version_problem
from fsr.encoder.settings import EncoderSettings

log = structlog.get_logger()

_LOOPBACK = "127.0.0.1"


def main() -> None:
    settings = EncoderSettings.load()
    configure_logging("encoder", settings.log_level)
    with traces("encoder", settings.otlp_endpoint):
        pass  # its replicas send traces; they would not start if they could not
    _check_environment(settings)
    os.environ.update(ray_environment(settings, os.environ))
    if settings.ray_address is None:
        check_ports(settings)
    if not starts_again():
        check_checkpoint(settings)
    _serve(settings)


def check_ports(settings: EncoderSettings) -> None:
    """Exits with one line if a port is taken. Otherwise Ray would try for good, and say nothing."""
    check_port(settings.host, settings.port)
    if settings.metrics_port is not None:
        check_port(_LOOPBACK if is_loopback(settings.host) else settings.host, settings.metrics_port, "--metrics-port")


def _check_environment(settings: EncoderSettings) -> None:
    """Exits with one line if Ray could not run here, or not as the settings say."""
    exit_on(metrics_folder_problem(), version_problem())
    if settings.ray_address is None:
        exit_on(ray_folder_problem(), shared_memory_problem())
        if (problem := small_shared_memory()) is not None:
            log.warning("little shared memory", reason=problem)


def check_checkpoint(settings: EncoderSettings) -> None:
    """Exits with one line if the checkpoint cannot be used. Otherwise a replica would fail, with Ray's traceback."""
    from fsr.encoder.images.scaled_jpeg import jpeg_side
    from fsr_core.backbones import load_encoder

    try:
        model = load_encoder(settings.model, clip=settings.clip, device="meta", family_options=settings.family_options)
        jpeg_side(model, settings.scaled_jpeg)
    except ValueError as error:
        raise SystemExit(f"error: --{re.sub('^family_options', 'family-options', str(error))}") from error


def _serve(settings: EncoderSettings) -> None:
    """Runs the application until SIGTERM or SIGINT."""
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    from fsr.encoder.app import APPLICATION, build
    from fsr.encoder.grpc_service import SERVICER_FUNCTION
    from fsr.encoder.serving.ray_start import start_ray

    if settings.ray_address is None:
        adopt_orphans()
    start_ray(address=settings.ray_address or "local", log_to_driver=True, _metrics_export_port=settings.metrics_port)
    if settings.ray_address is not None:
        _check_joined_ray(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # in place of Ray's handlers, which would not shut Serve down first
        signal.signal(number, lambda *_: stop.set())
    http = _reserved_port()
    try:
        with ends_with_ray(restart=settings.restart and settings.ray_address is None):
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": _LOOPBACK, "port": http.getsockname()[1]},
                grpc_options=gRPCOptions(port=settings.port, grpc_servicer_functions=[SERVICER_FUNCTION]),
            )
            serve.run(build(settings), name=APPLICATION, route_prefix="/")
            if settings.tls_cert is None and (settings.ray_address or not is_loopback(settings.host)):
                log.warning(
                    "open to other machines, without keys: close the port to all but gateways", port=settings.port
                )
            log.info(
                "serving",
                address=join(settings.host, settings.port),
                model=settings.model,
                tls=settings.tls_cert is not None,
            )
            stop.wait()
        log.info("stopping")
    finally:
        serve.shutdown()
        ray.shutdown()
        http.close()


def _check_joined_ray(settings: EncoderSettings) -> None:
    """Exits with one line if a Ray that others started lacks what the settings ask of it: TLS, or direct ingress."""
    import ray

    def problem(settings: EncoderSettings) -> str | None:
        try:
            check_ingress(settings)
            check_tls(settings)
        except ValueError as error:
            return str(error)
        return None

    exit_on(ray.get(ray.remote(num_cpus=0)(problem).remote(settings)))


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
