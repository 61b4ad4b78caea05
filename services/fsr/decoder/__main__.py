"""`python -m fsr.decoder`"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from functools import partial

import grpc
import structlog
import torch
from grpc_health.v1 import health_pb2
from prometheus_client import start_http_server

from fsr.common.telemetry import add_health_and_reflection, configure_logging, stop_signal
from fsr.common.transport import server_options
from fsr.decoder.admission import Admission
from fsr.decoder.engines.base import Engine
from fsr.decoder.metrics import Metrics
from fsr.decoder.service import DecoderServicer
from fsr.decoder.settings import DecoderSettings
from fsr.v1 import decoder_pb2, decoder_pb2_grpc
from fsr_core.backbones import LanguageDecoder, dtype_of, load_decoder

log = structlog.get_logger()
_CPU_KV_BYTES = 2**30
_GPU_SHARE = 0.8


def kv_bytes(settings: DecoderSettings, to_load: int = 0) -> int:
    """The KV budget: what the option says, else what is reasonable on the device beside weights still `to_load`."""
    if settings.kv_memory is not None:
        return int(settings.kv_memory)
    device = torch.device(settings.device)
    if device.type == "cuda":
        return int(max(0, torch.cuda.mem_get_info(device)[0] - to_load) * _GPU_SHARE)
    return _CPU_KV_BYTES


async def start_engine(settings: DecoderSettings, metrics: Metrics) -> tuple[LanguageDecoder, Engine]:
    """Loads the model. Raises ValueError, naming the option, where the checkpoint or the engine does not fit."""
    dtype = dtype_of(settings.dtype)
    if settings.engine == "vllm":
        from fsr.decoder.engines.vllm.engine import VllmEngine  # an extra of its own

        return await VllmEngine.start(settings, partial(kv_bytes, settings), dtype)
    from fsr.decoder.engines.transformers.engine import TransformersEngine

    if settings.engine_options or settings.engine_folder:
        raise ValueError("engine: transformers takes no --engine-options and no --engine-folder; leave them out")
    model = await asyncio.to_thread(load_decoder, settings.model, device=settings.device, dtype=dtype)
    engine = TransformersEngine(model, metrics, kv_bytes(settings), settings.prefill_tokens, settings.prefix_block)
    return model, engine


def watch(metrics: Metrics, admission: Admission, engine: Engine) -> None:
    """Gauges that are read when they are scraped."""
    metrics.running.set_function(lambda: admission.running)
    metrics.waiting.set_function(lambda: admission.waiting)
    metrics.kv_capacity.set(admission.capacity)
    metrics.kv_reserved.set_function(lambda: admission.reserved)
    metrics.kv_used.set_function(engine.kv_used)
    metrics.kv_cached.set_function(engine.kv_cached)
    if engine.registry is not None:
        metrics.registry.register(engine.registry)  # type: ignore[arg-type]


def _no_port(settings: DecoderSettings, error: Exception) -> SystemExit:
    return SystemExit(f"error: --port: cannot listen on {settings.host}:{settings.port} ({error})")


def _check_port(settings: DecoderSettings) -> None:
    """Before the model is loaded, which takes long. Not kept: who connects should learn at once that nobody serves."""
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        raise _no_port(settings, error) from error


async def serve(settings: DecoderSettings) -> None:
    """Loads the model, serves until a signal, drains."""
    stop = stop_signal()
    torch.set_num_threads(settings.threads)
    _check_port(settings)
    metrics = Metrics(settings.announced_name)
    try:
        web, _ = start_http_server(settings.metrics_port, settings.host, metrics.registry)
    except OSError as error:
        raise SystemExit(f"error: --metrics-port: {settings.metrics_port} cannot be opened ({error})") from error
    try:
        model, engine = await start_engine(settings, metrics)
    except ValueError as error:
        raise SystemExit(f"error: --{error}") from error
    admission = Admission(
        engine.kv_capacity, settings.max_running, settings.max_waiting, settings.max_wait_seconds, metrics
    )
    watch(metrics, admission, engine)
    server = grpc.aio.server(options=server_options())
    servicer = DecoderServicer(model, engine, admission, metrics, settings)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)
    name = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name
    health = add_health_and_reflection(server, [name])
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:  # somebody took it while the model was loaded
        raise _no_port(settings, error) from error
    await server.start()
    for service in ("", name):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
    log.info(
        "serving",
        address=f"{settings.host}:{port}",
        metrics=f"{settings.host}:{web.server_port}",
        model=settings.model,
        engine=engine.name,
        kv_bytes=engine.kv_capacity,
    )
    async with _marked_when_dead(engine, health, name):
        await stop.wait()
    log.info("draining", seconds=settings.drain_seconds)
    await health.enter_graceful_shutdown()
    # By the servicer first: gRPC's own stop tells a call that is on its way CANCELLED, as if its caller had left.
    end = time.monotonic() + settings.drain_seconds
    await servicer.drain(settings.drain_seconds)
    await server.stop(max(0.0, end - time.monotonic()))
    await engine.close()
    web.shutdown()


@asynccontextmanager
async def _marked_when_dead(engine: Engine, health, name: str):  # type: ignore[no-untyped-def]
    """The moment the engine dies the replica is not serving; whoever watches its health replaces it."""

    async def mark() -> None:
        await engine.dead.wait()
        log.error("not serving", reason="the engine has died")
        for service in ("", name):
            await health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)

    task = asyncio.create_task(mark())
    try:
        yield
    finally:
        task.cancel()


def main() -> None:
    settings = DecoderSettings.load()
    configure_logging("decoder", settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
