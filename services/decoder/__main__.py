"""`python -m services.decoder`"""

from __future__ import annotations

import asyncio

import grpc
import structlog
import torch
from fsr.v1 import decoder_pb2, decoder_pb2_grpc
from grpc_health.v1 import health_pb2

from fsr_core.backbones import load_decoder
from services.decoder.engines.transformers import TransformersEngine
from services.decoder.service import DecoderServicer
from services.decoder.settings import DecoderSettings
from services.telemetry import add_health_and_reflection, configure_logging, stop_signal
from services.transport import server_options

log = structlog.get_logger()
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


async def serve(settings: DecoderSettings) -> None:
    """Loads the model, serves until a signal, drains."""
    stop = stop_signal()
    torch.set_num_threads(settings.threads)
    try:
        model = await asyncio.to_thread(
            load_decoder, settings.model, device=settings.device, dtype=_DTYPES[settings.dtype]
        )
    except ValueError as error:
        raise SystemExit(f"error: --{error}") from error
    engine = TransformersEngine(model, settings.max_running, settings.max_waiting)
    server = grpc.aio.server(options=server_options())
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(DecoderServicer(model, engine, settings), server)
    name = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name
    health = add_health_and_reflection(server, [name])
    port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    await server.start()
    for service in ("", name):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
    log.info("serving", address=f"{settings.host}:{port}", model=settings.model)
    await stop.wait()
    log.info("draining", seconds=settings.drain_seconds)
    await health.enter_graceful_shutdown()
    await server.stop(settings.drain_seconds)
    engine.close()


def main() -> None:
    settings = DecoderSettings.load()
    configure_logging("decoder", settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
