"""The encoder as a Ray Serve deployment."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import Any

import torch
from ray import serve

from fsr.common.errors import Expired, InvalidRequest, ServiceError, status_of
from fsr.common.telemetry import configure_logging, log_end
from fsr.encoder.cache import FeatureCache
from fsr.encoder.images import check_pixels
from fsr.encoder.ingress import ReplicaPorts, check_ingress
from fsr.encoder.metrics import EncoderMetrics
from fsr.encoder.pipeline import (
    Job,
    compress,
    compressed_image,
    content,
    each_alone,
    encode,
    is_multi_image,
    plan_of,
    prepare,
)
from fsr.encoder.settings import EncoderSettings
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core import DEFAULT_METHOD, methods
from fsr_core.backbones import dtype_of, load_encoder

__all__ = ["APPLICATION", "application", "build"]

APPLICATION = "encoder"

_HEALTH_SECONDS = 3.0  # time between Serve's looks at a replica; one that has died is replaced after the next


@serve.deployment
class Encoder:
    """One replica: a vision tower, a text tower and the compressors. It never loads the language model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = options = EncoderSettings.model_construct(**settings)
        configure_logging("encoder", options.log_level)
        torch.set_num_threads(options.threads)
        self._model = load_encoder(
            options.model,
            clip=options.clip,
            device=options.device,
            dtype=dtype_of(options.dtype),
            options=options.family_options,
        )
        self._ports = ReplicaPorts(APPLICATION)
        self._cache = FeatureCache(int(options.cache_mb * 2**20))
        self._metrics = EncoderMetrics(options.served_name or options.model)
        self._run.set_max_batch_size(options.max_batch_size)  # type: ignore[attr-defined]
        self._run.set_batch_wait_timeout_s(options.batch_wait_seconds)  # type: ignore[attr-defined]

    async def DescribeEncoder(self, request: encoder_pb2.DescribeEncoderRequest) -> encoder_pb2.DescribeEncoderResponse:
        info = self._model.info
        return encoder_pb2.DescribeEncoderResponse(
            model=types_pb2.ModelDescription(
                model=self._settings.served_name or self._settings.model,
                fingerprint=self._model.fingerprint,
                feature_dim=info.feature_dim,
                context_length=info.context_length,
            ),
            methods=methods(),
            addresses=await self._ports.addresses(),
        )

    async def Encode(self, request: encoder_pb2.EncodeRequest, grpc_context: Any) -> encoder_pb2.EncodeResponse:
        code, began = "INTERNAL", time.monotonic()
        about: dict[str, Any] = {"request_id": request.request_id}  # not bound: the batches' task would keep it
        try:
            encoded = await self._encode(request)
            code = "OK"
            about |= {
                "images": len(encoded.images),
                "visual_tokens_in": sum(image.source_tokens for image in encoded.images),
                "visual_tokens_kept": sum(len(image.index) for image in encoded.images),
                "cached_images": encoded.cache_hits,
            }
            return encoded
        except ServiceError as error:
            # Not raised further: Serve would log a traceback for a caller's mistake.
            code = status_of(error).name
            about["reason"] = str(error)
            grpc_context.set_code(status_of(error))
            grpc_context.set_details(str(error))
            return encoder_pb2.EncodeResponse()
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            log_end("Encode", code, began, **about)

    async def _encode(self, request: encoder_pb2.EncodeRequest) -> encoder_pb2.EncodeResponse:
        began = time.monotonic()
        end = began + (request.timeout_seconds or inf)
        plan = plan_of(request)
        if not request.images:
            raise InvalidRequest("images: is empty; send at least one JPEG, PNG or WebP file")
        options = self._settings
        await asyncio.to_thread(check_pixels, request.images, options.max_image_pixels, options.max_request_pixels)
        multi_image = is_multi_image(self._model, request.images)
        keys = [self._cache.key(content(image, multi_image)) for image in request.images]
        known = [self._cache.get(key) for key in keys]
        jobs = [
            Job(plan, await asyncio.to_thread(self._prepare, image, i, multi_image) if seen is None else None, seen)
            for i, (image, seen) in enumerate(zip(request.images, known, strict=True))
        ]
        results = []
        for result in await asyncio.gather(*(self._run((job, end)) for job in jobs)):
            if isinstance(result, Exception):
                raise result
            if result is not None:
                results.append(result)
        if len(results) < len(jobs):
            raise Expired("deadline: passed before the encoder came to it; allow more time or add replicas")
        for key, (features, _, _) in zip(keys, results, strict=True):
            self._cache.put(key, features)
        compressing = max(seconds for _, _, seconds in results)
        images = [
            compressed_image(f, kept, self._model.assemble(f, kept), request.wire_dtype, request.explain)
            for f, kept, _ in results
        ]
        hits = sum(seen is not None for seen in known)
        self._metrics.answered(request.method.name or DEFAULT_METHOD, images, hits, self._cache.nbytes)
        return encoder_pb2.EncodeResponse(
            fingerprint=self._model.fingerprint,
            images=images,
            encode_seconds=time.monotonic() - began - compressing,
            compress_seconds=compressing,
            cache_hits=hits,
        )

    def _prepare(self, image: types_pb2.Image, number: int, multi_image: bool) -> Any:
        return prepare(self._model, image, f"images[{number}]", self._settings.max_image_pixels, multi_image)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def _run(self, timed: list[tuple[Job, float]]) -> list[tuple[Any, Any, float] | Exception | None]:
        """Features, kept tokens and seconds of compression for each job of a batch that may mix everything, or what
        was wrong with it.

        None stands for a job that nobody waits for any more. (Serve itself leaves out those that were cancelled.)
        """
        now = time.monotonic()
        wanted = [job for job, end in timed if end > now]
        done = iter(await asyncio.to_thread(each_alone, self._run_batch, wanted) if wanted else [])
        return [next(done) if end > now else None for _, end in timed]

    def _run_batch(self, jobs: list[Job]) -> list[tuple[Any, Any, float]]:
        started = time.monotonic()
        pairs = encode(self._model, jobs)
        began = time.monotonic()
        kept = compress(jobs, pairs)
        seconds = time.monotonic() - began
        self._metrics.batch(len(jobs), began - started, seconds)
        return [(features, k, seconds) for (features, _), k in zip(pairs, kept, strict=True)]


def build(settings: EncoderSettings) -> serve.Application:
    """The application with its resources, scaling bounds and queue limits."""
    scaled = Encoder.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        health_check_period_s=_HEALTH_SECONDS,
        logging_config={"encoding": "JSON", "enable_access_log": False},  # ours has a line for each request
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
    )
    application: serve.Application = scaled.bind(settings.model_dump())
    return application


def application(options: dict[str, Any]) -> serve.Application:
    """What a Serve configuration names as `import_path`; its `args` are the encoder's options.

    Raises ValueError, naming the option, where Ray itself was not started as an option needs it.
    """
    settings = EncoderSettings(**options)
    check_ingress(settings)
    return build(settings)
