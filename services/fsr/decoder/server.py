"""The decoder's process: ports, health, the engine, and an orderly end."""

from __future__ import annotations

import grpc
import structlog
import torch

from fsr.common.network.certificates import server_credentials
from fsr.common.process.draining import Draining
from fsr.common.process.lifecycle import MetricsServer, ServiceProcess, open_port, probe_server, stop_signal
from fsr.common.telemetry.spans import Tracer
from fsr.common.wire.incoming import IncomingMessages
from fsr.common.wire.slow_readers import SlowReaders
from fsr.common.wire.transport import MAX_STREAMS, server_options
from fsr.decoder.admission import Admission
from fsr.decoder.engines.base import Engine
from fsr.decoder.engines.table import engine_class
from fsr.decoder.metrics import Metrics
from fsr.decoder.pipeline import DecodePipeline
from fsr.decoder.service import DecoderServicer
from fsr.decoder.settings import DecoderSettings
from fsr.v1 import decoder_pb2, decoder_pb2_grpc
from fsr_core.backbones import LanguageDecoder

__all__ = ["serve"]

log = structlog.get_logger()
_SERVICE = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"]
_MESSAGE_SECONDS = 60.0  # a gateway sends a request at once


async def _start_engine(settings: DecoderSettings, metrics: Metrics) -> tuple[LanguageDecoder, Engine]:
    """Exits with one line that names the option if the engine or the checkpoint does not fit."""
    try:
        return await engine_class(settings.engine).start(settings, metrics)
    except ValueError as error:
        raise SystemExit(f"error: --{error}") from error


def _set_gauges(metrics: Metrics, admission: Admission, engine: Engine) -> None:
    """Gauges are read when they are scraped."""
    metrics.running.set_function(lambda: admission.running)
    metrics.waiting.set_function(lambda: admission.waiting)
    metrics.kv_capacity.set(admission.capacity)
    metrics.kv_reserved.set_function(lambda: admission.reserved)
    metrics.kv_used.set_function(engine.kv_used)
    metrics.kv_cached.set_function(engine.kv_cached)
    if engine.registry is not None:
        metrics.registry.register(engine.registry)  # type: ignore[arg-type]


async def _watch(engine: Engine, process: ServiceProcess) -> None:
    """Reports NOT_SERVING as soon as the engine is dead, so that this replica is replaced."""
    await engine.dead.wait()
    log.error("not serving", reason="the engine has died")
    await process.set_serving(False)


async def serve(settings: DecoderSettings, tracer: Tracer) -> None:
    """Loads the model, serves until a signal, then drains."""
    stop = stop_signal()
    torch.set_num_threads(settings.threads)
    metrics = Metrics(settings.announced_name)
    exporter = MetricsServer(settings.host, settings.metrics_port, metrics.registry)
    model, engine = await _start_engine(settings, metrics)
    admission = Admission(
        engine.kv_capacity, settings.max_running, settings.max_waiting, settings.max_wait_seconds, metrics
    )
    _set_gauges(metrics, admission, engine)
    draining = Draining("decoder: is shutting down; ask another replica")
    pipeline = DecodePipeline(model, engine, admission, draining, metrics, settings)
    readers = SlowReaders(_SERVICE.full_name, settings.stall_seconds, metrics.slow_readers.inc)
    messages = IncomingMessages(_SERVICE, lambda rpc, code: metrics.requests(code).inc(), seconds=_MESSAGE_SECONDS)
    # A gateway has one connection: all that may run or wait here come by it, and a further call is refused at once.
    streams = settings.max_running + settings.max_waiting + MAX_STREAMS
    server = grpc.aio.server(interceptors=[messages, readers], options=server_options(max_streams=streams))
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(DecoderServicer(pipeline, tracer), server)
    process = ServiceProcess(server, _SERVICE.full_name, draining, settings.drain_seconds)
    certificate = settings.certificate()
    credentials = server_credentials(certificate) if certificate is not None else None
    address = open_port(server, settings.host, settings.port, credentials=credentials)
    probes = probe_server(process.health, settings.host, settings.health_port)
    await process.set_serving(True)
    if probes is not None:
        await probes.start()
    try:
        await process.run(
            stop,
            _watch(engine, process),
            address=address,
            metrics=exporter.address,
            traces=tracer.active,
            model=settings.model,
            engine=engine.name,
            kv_bytes=engine.kv_capacity,
            tls=certificate is not None,
        )
    finally:
        if probes is not None:
            await probes.stop(None)
        await engine.close()
        exporter.close()
