"""The encoder as a Ray Serve deployment: decode, call, encode."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import structlog
import torch
from ray import serve

from fsr.common.errors import Failed, ServiceError, status_of
from fsr.common.telemetry.logs import configure_logging, log_end
from fsr.common.telemetry.tracing import start_tracing
from fsr.common.wire.wire_fields import parse_message
from fsr.encoder.batching import Batches
from fsr.encoder.cache import FeatureCache
from fsr.encoder.images.scaled_jpeg import jpeg_side
from fsr.encoder.metrics import EncoderMetrics
from fsr.encoder.pipeline import EncoderPipeline
from fsr.encoder.requests.limits import RequestLimits
from fsr.encoder.serving.ingress import ReplicaAddresses, check_ingress, ingress_of
from fsr.encoder.serving.serve_ports import check_tls, listen_as_told, share_no_port
from fsr.encoder.settings import EncoderSettings
from fsr.encoder.shared_cache.ray_directory import RayDirectory, directory_name
from fsr.encoder.shared_cache.shared_features import SharedFeatures
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core import DEFAULT_METHOD, methods
from fsr_core.backbones import dtype_of, load_encoder

__all__ = ["APPLICATION", "application", "build"]

log = structlog.get_logger()
APPLICATION = "encoder"

_HEALTH_CHECK_SECONDS = 3.0  # time between Serve's checks of a replica; a dead one is replaced after the next check


@serve.deployment
class Encoder:
    """One replica: a vision tower, a text tower and the compressors. It never loads the language model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        options = EncoderSettings.model_construct(**settings)
        configure_logging("encoder", options.log_level)
        check_tls(options)
        self._tracer = start_tracing("encoder", options.otlp_endpoint)
        listen_as_told()
        share_no_port()
        torch.set_num_threads(options.threads)
        self._name = options.announced_name
        self._model = load_encoder(
            options.model,
            clip=options.clip,
            device=options.device,
            dtype=dtype_of(options.dtype),
            family_options=options.family_options,
        )
        self._metrics = EncoderMetrics(self._name)
        cache = FeatureCache(int(options.cache_mb * 2**20))
        self._shared = self._shared_features(options, cache)
        self._pipeline = EncoderPipeline(
            self._model,
            cache=cache,
            shared=self._shared,
            limits=RequestLimits.of(options),
            decode_threads=options.decode_threads,
            max_batch_size=options.max_batch_size,
            jpeg_side=jpeg_side(self._model, options.scaled_jpeg),
            on_batch=self._metrics.note_batch,
        )
        self._addresses = ReplicaAddresses(APPLICATION) if ingress_of(options) == "direct" else None
        self._batches = Batches(self._pipeline.run_batch, options.max_batch_size, options.batch_wait_seconds)

    def _shared_features(self, options: EncoderSettings, cache: FeatureCache) -> SharedFeatures | None:
        """None if there can be no other replica, or if features are not to be shared."""
        if not options.shared_cache or options.max_replicas == 1 or options.cache_mb == 0:
            return None
        return SharedFeatures(
            serve.get_replica_context().replica_id.unique_id,
            cache,
            self._model.device,
            connect=partial(RayDirectory, directory_name(self._model.fingerprint, options)),
            on_hit=self._metrics.count_shared_hit,
        )

    def __del__(self) -> None:
        """Serve calls it when the replica stops."""
        if hasattr(self, "_tracer"):  # else the replica did not start
            self._tracer.close()

    async def DescribeEncoder(self, data: bytes, grpc_context: Any) -> encoder_pb2.DescribeEncoderResponse:
        self._share()
        try:
            parse_message(encoder_pb2.DescribeEncoderRequest, data)
        except ServiceError as error:
            _set_status(grpc_context, error, "")
            return encoder_pb2.DescribeEncoderResponse()
        info = self._model.info
        return encoder_pb2.DescribeEncoderResponse(
            model=types_pb2.ModelDescription(
                model=self._name,
                fingerprint=self._model.fingerprint,
                feature_dim=info.feature_dim,
                context_length=info.context_length,
            ),
            methods=methods(),
            addresses=await self._addresses.get() if self._addresses is not None else (),
        )

    async def Encode(self, data: bytes, grpc_context: Any) -> encoder_pb2.EncodeResponse:
        self._share()
        code, began = "INTERNAL", time.monotonic()
        log_fields: dict[str, Any] = {}
        span = self._tracer.request("fsr.v1.EncoderService/Encode", grpc_context.invocation_metadata)
        try:
            request = parse_message(encoder_pb2.EncodeRequest, data)
            # Not bound to the logger's context: the task that runs the batches would keep it.
            log_fields |= {"request_id": request.request_id, **span.log_fields}
            response = await self._pipeline.answer(request, self._batches.run, span)
            self._metrics.note_response(request.method.name or DEFAULT_METHOD, response, self._pipeline.cache_bytes)
            code = "OK"
            log_fields |= {
                "images": len(response.images),
                "visual_tokens_in": sum(image.source_tokens for image in response.images),
                "visual_tokens_kept": sum(len(image.index) for image in response.images),
                "cached_images": response.cache_hits,
            }
            return response
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as exception:
            # Not raised again: Serve would send the traceback to the caller, and log one for a mistake of the caller.
            # Not kept in a variable: the error would keep itself, and the request with it.
            log_fields["reason"] = _set_status(grpc_context, exception, log_fields.get("request_id", ""))
            code = status_of(exception).name if isinstance(exception, ServiceError) else code
            return encoder_pb2.EncodeResponse()
        finally:
            asyncio.get_running_loop().call_soon(self._metrics.flush)  # once Serve has the response
            log_end("Encode", code, began, **log_fields)
            span.set({f"fsr.{name}": value for name, value in log_fields.items() if name not in ("reason", "trace_id")})
            span.end(code, log_fields.get("reason", ""))

    def _share(self) -> None:
        """Needs the event loop of the requests, which is not there yet while a replica is made."""
        if self._shared is not None:
            self._shared.start()


def _set_status(grpc_context: Any, error: Exception, request_id: str) -> str:
    """Ends the call with the status of an error; returns what the caller hears.

    An error that nobody expected is logged, and the caller hears nothing of its cause.
    """
    if not isinstance(error, ServiceError):
        log.error("unexpected", rpc="Encode", request_id=request_id, exc_info=error)
        error = Failed("encoder: failed unexpectedly; its log says more")
    grpc_context.set_code(status_of(error))
    grpc_context.set_details(str(error))
    return str(error)


def build(settings: EncoderSettings) -> serve.Application:
    """The application with its resources, scaling bounds and queue limits."""
    deployment = Encoder.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        # Our own log has a line for each request. With Serve's INFO it makes one too, which it then drops.
        logging_config={"encoding": "JSON", "log_level": "WARNING", "enable_access_log": False},
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
    )
    application: serve.Application = deployment.bind(settings.model_dump())
    return application


def application(options: dict[str, Any]) -> serve.Application:
    """The `import_path` of a Serve configuration; the `args` there are the encoder's options.

    Raises ValueError, naming the option, if it is wrong or if Ray was started without what it needs.
    """
    settings = EncoderSettings(**options)
    check_ingress(settings)
    check_tls(settings)
    return build(settings)
