"""The gateway's gRPC face and the life of a request: check, admit, encode, route, stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import contextmanager

import grpc
import structlog
from fsr.v1 import decoder_pb2, encoder_pb2, gateway_pb2_grpc
from fsr.v1 import gateway_pb2 as pb

from services.errors import (
    Expired,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
    from_rpc,
    status_of,
    stream_errors,
    unary_errors,
)
from services.gateway import checks
from services.gateway.metrics import Metrics
from services.gateway.replicas import Pools, Replica
from services.gateway.settings import GatewaySettings

__all__ = ["GatewayServicer"]

log = structlog.get_logger()


class _Deadline:
    """The caller's, or the default; each hop gets what is left of it."""

    def __init__(self, context: grpc.aio.ServicerContext, default: float) -> None:
        left = context.time_remaining()
        self._end = time.monotonic() + (default if left is None else min(left, default * 10))

    def left(self) -> float:
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise Expired("deadline: has passed; allow more time")
        return seconds


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Stateless but for the requests in flight: it keeps their compact tokens until the answer is complete."""

    def __init__(self, pools: Pools, metrics: Metrics, settings: GatewaySettings) -> None:
        self._pools, self._metrics, self._settings = pools, metrics, settings
        self._in_flight = 0

    @contextmanager
    def _admitted(self, rpc: str):  # type: ignore[no-untyped-def]
        """Counts the request, refuses it where there is no room, and records how it ended."""
        code = "CANCELLED"
        entered = False
        try:
            if self._in_flight >= self._settings.max_requests:
                self._metrics.refused.labels("in_flight").inc()
                raise Overloaded(f"gateway: {self._in_flight} requests are in flight; try again in a moment")
            self._in_flight += 1
            entered = True
            self._metrics.in_flight.set(self._in_flight)
            request_id = uuid.uuid4().hex
            structlog.contextvars.bind_contextvars(request_id=request_id)
            yield request_id
            code = "OK"
        except ServiceError as error:
            code = status_of(error).name
            raise
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            if entered:
                self._in_flight -= 1
                self._metrics.in_flight.set(self._in_flight)
            self._metrics.requests.labels(rpc, code).inc()

    @unary_errors
    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[
                pb.AvailableModel(
                    model=name,
                    encoders=len(self._pools.of("encoder", name)),
                    decoders=len(self._pools.of("decoder", name)),
                    methods=self._pools.methods(name),
                )
                for name in self._pools.models()
            ]
        )

    @unary_errors
    async def Compress(self, request: pb.CompressRequest, context: grpc.aio.ServicerContext) -> pb.CompressResponse:
        with self._admitted("Compress") as request_id:
            deadline = _Deadline(context, self._settings.default_timeout_seconds)
            if not request.images:
                raise InvalidRequest("images: is empty; send at least one JPEG, PNG or WebP file")
            checks.check_images(request.images, self._settings)
            checks.check_budget(request.budget)
            if not request.instruction.strip():
                raise InvalidRequest("instruction: is blank; ask a question")
            model = self._pools.resolve(request.model)
            checks.check_method(request.method, self._pools.methods(model))
            encoded = await self._encode(
                model,
                encoder_pb2.EncodeRequest(
                    request_id=request_id,
                    images=request.images,
                    instruction=request.instruction,
                    budget=request.budget,
                    method=request.method,
                    wire_dtype=request.wire_dtype,
                    explain=request.explain,
                ),
                deadline,
            )
            return pb.CompressResponse(request_id=request_id, fingerprint=encoded.fingerprint, images=encoded.images)

    @stream_errors
    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        with self._admitted("Generate") as request_id:
            began = time.monotonic()
            deadline = _Deadline(context, self._settings.default_timeout_seconds)
            instruction = checks.check_messages(request.messages, len(request.images), self._settings)
            checks.check_images(request.images, self._settings)
            checks.check_sampling(request.sampling)
            if request.images:
                checks.check_budget(request.budget)
            model = self._pools.resolve(request.model)
            checks.check_method(request.method, self._pools.methods(model))
            encoded = encoder_pb2.EncodeResponse()
            if request.images:
                encoded = await self._encode(
                    model,
                    encoder_pb2.EncodeRequest(
                        request_id=request_id,
                        images=request.images,
                        instruction=instruction,
                        budget=request.budget,
                        method=request.method,
                    ),
                    deadline,
                )
            decode = decoder_pb2.DecodeRequest(
                request_id=request_id,
                fingerprint=encoded.fingerprint,
                messages=request.messages,
                images=encoded.images,
                sampling=request.sampling,
            )
            if request.sampling.temperature > 0 and not request.sampling.HasField("seed"):
                # Chosen here, so that another replica goes on with the same draws.
                decode.sampling.seed = uuid.uuid4().int >> 66
            shipped = time.monotonic()
            first: float | None = None
            dead: set[str] = set()
            while True:
                replica = self._pools.decoder(model, encoded.fingerprint or None, frozenset(dead))
                replica.outstanding += 1
                try:
                    async for message in replica.decoder.Decode(decode, timeout=deadline.left()):
                        first = first or time.monotonic()
                        decode.emitted_token_ids.extend(message.token_ids)
                        response = pb.GenerateResponse(text=message.text, finish_reason=message.finish_reason)
                        if message.finish_reason:
                            usage = self._usage(model, request, encoded, message.stats, replica)
                            usage.request_id, usage.failovers = request_id, len(dead)
                            now = time.monotonic()
                            stats = message.stats
                            ship = first - shipped - stats.queue_seconds - stats.prefill_seconds
                            seconds = {
                                "encode": encoded.encode_seconds,
                                "compress": encoded.compress_seconds,
                                "ship": max(0.0, ship),
                                "queue": stats.queue_seconds,
                                "prefill": stats.prefill_seconds,
                                "decode": stats.decode_seconds,
                                "ttft": first - began,
                                "total": now - began,
                            }
                            usage.seconds.update(seconds)
                            for stage, value in seconds.items():
                                self._metrics.seconds.labels(model, stage).observe(value)
                            response.usage.CopyFrom(usage)
                        yield response
                        if message.finish_reason:
                            return
                    raise NotReady(f"decoder: {replica.address} ended its stream early; try again")
                except grpc.aio.AioRpcError as error:
                    known = from_rpc(error, "replica")
                    if error.code() != grpc.StatusCode.UNAVAILABLE or len(dead) >= self._settings.max_failovers:
                        if known is not None:
                            raise known from error
                        raise
                    log.warning("failover", replica=replica.address, emitted=len(decode.emitted_token_ids))
                    dead.add(replica.address)
                    replica.model = None
                    self._metrics.failovers.labels(model).inc()
                finally:
                    replica.outstanding -= 1

    async def _encode(
        self, model: str, request: encoder_pb2.EncodeRequest, deadline: _Deadline
    ) -> encoder_pb2.EncodeResponse:
        replica = self._pools.encoder(model)
        replica.outstanding += 1
        try:
            encoded = await replica.encoder.Encode(request, timeout=deadline.left())
        except grpc.aio.AioRpcError as error:
            known = from_rpc(error, "replica")
            if known is None:
                raise
            raise known from error
        finally:
            replica.outstanding -= 1
        m, by = self._metrics, (model, request.method.name or "fsr")
        for image in encoded.images:
            kept = len(image.index)
            m.tokens_in.labels(*by).inc(image.source_tokens)
            m.tokens_kept.labels(*by, "focus").inc(image.focus_count)
            m.tokens_kept.labels(*by, "scan").inc(kept - image.focus_count)
            m.tokens_merged.labels(*by).inc(image.merged_count)
            m.ratio.labels(*by).observe(kept / image.source_tokens)
            m.clamped.labels(*by).inc(image.focus_wanted > image.focus_count)
        m.cache_hits.labels(model).inc(encoded.cache_hits)
        return encoded

    def _usage(
        self,
        model: str,
        request: pb.GenerateRequest,
        encoded: encoder_pb2.EncodeResponse,
        stats: decoder_pb2.DecodeStats,
        replica: Replica,
    ) -> pb.Usage:
        before = sum(image.source_tokens for image in encoded.images)
        kept = sum(len(image.index) for image in encoded.images)
        wire = sum(len(image.features.data) + len(image.features.scales) for image in encoded.images)
        cost, length = replica.cost, stats.prompt_tokens
        saved = before - kept
        flops = cost.flops_linear * saved + cost.flops_quadratic * ((length + saved) ** 2 - length**2)
        usage = pb.Usage(
            prompt_tokens=length,
            completion_tokens=stats.completion_tokens,
            visual_tokens_in=before,
            visual_tokens_kept=kept,
            kv_bytes_saved=cost.kv_bytes_per_token * saved,
            prefill_flops_saved=flops,
            wire_bytes=wire,
            wire_bytes_saved=wire // kept * saved if kept else 0,
        )
        by = (model, request.method.name or "fsr")
        self._metrics.kv_saved.labels(*by).inc(usage.kv_bytes_saved)
        self._metrics.flops_saved.labels(*by).inc(usage.prefill_flops_saved)
        self._metrics.wire_saved.labels(*by).inc(usage.wire_bytes_saved)
        return usage
