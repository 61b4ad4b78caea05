"""The life of a request: check, encode, route, stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from fsr.gateway import auth, validation
from fsr.gateway.canary import Canary
from fsr.gateway.deadline import Deadline
from fsr.gateway.decoder_hop import Decoding
from fsr.gateway.encoder_hop import Encoding
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Retrying
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.settings import GatewaySettings
from fsr.gateway.usage import Stopwatch, count_usage, usage_of
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = ["Requests"]

_WIRE = {"weights": types_pb2.DTYPE_UNSPECIFIED} | {
    name: types_pb2.Dtype.Value(f"DTYPE_{name.upper()}") for name in ("fp32", "fp16", "bf16", "int8")
}


class Requests:
    """Stateless but for the requests in flight: it keeps their compact tokens until the answer is complete."""

    def __init__(self, pools: Pools, metrics: Metrics, settings: GatewaySettings) -> None:
        self._pools, self._metrics, self._settings = pools, metrics, settings
        self._budget = RetryBudget(settings.retry_ratio, settings.retry_burst)
        shared = Retrying(settings, metrics, self._budget)
        self._encoding, self._decoding = Encoding(pools, shared), Decoding(pools, shared)
        self._canary = Canary(pools, metrics, settings)

    def models(self) -> list[pb.AvailableModel]:
        """What the caller may ask for."""
        return [
            pb.AvailableModel(
                model=name,
                encoders=len(self._pools.of("encoder", name)),
                decoders=len(self._pools.fitting(name)),
                methods=self._pools.methods(name),
            )
            for name in self._pools.models()
            if auth.caller().may_ask(name)
        ]

    async def compress(self, request: pb.CompressRequest, deadline: Deadline, trail: Trail) -> pb.CompressResponse:
        """Raises ServiceError."""
        validation.check_compress(request, self._settings)
        model = self._model(request.model, request.method)
        asked = self._encode_request(request, trail, request.instruction)
        asked.explain = request.explain
        encoded = await self._encode(model, asked, deadline, trail)
        return pb.CompressResponse(request_id=trail.request_id, fingerprint=encoded.fingerprint, images=encoded.images)

    async def generate(
        self, request: pb.GenerateRequest, deadline: Deadline, trail: Trail
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Raises ServiceError."""
        watch = Stopwatch(time.monotonic())
        instruction = validation.check_generate(request, self._settings)
        model = self._model(request.model, request.method)
        encoded = encoder_pb2.EncodeResponse()
        if request.images:
            asked = self._encode_request(request, trail, instruction)
            encoded = await self._encode(model, asked, deadline, trail)
        decode = self._decode_request(request, encoded, trail)
        watch.shipped = time.monotonic()
        async with aclosing(self._decoding.answer(model, decode, deadline, trail)) as answer:
            async for replica, message in answer:
                watch.heard(len(trail.decoders), time.monotonic())
                trail.completion_tokens += len(message.token_ids)
                response = pb.GenerateResponse(
                    text=message.text,
                    finish_reason=message.finish_reason,
                    token_ids=message.token_ids,
                    logprobs=message.logprobs,
                )
                if message.finish_reason:
                    usage = usage_of(encoded, request.messages, message.stats, replica, trail)
                    seconds = watch.seconds(encoded, message.stats, time.monotonic())
                    usage.seconds.update(seconds)
                    # Without images no encoder has said that there is such a method.
                    method = request.method.name if request.images else ""
                    count_usage(self._metrics, model, method, usage, replica.cost, seconds)
                    response.usage.CopyFrom(usage)
                yield response
        if request.images:
            # In the logs its hops are not to be taken for this request's.
            asked.request_id = decode.request_id = f"{trail.request_id}-canary"
            with structlog.contextvars.bound_contextvars(request_id=asked.request_id):
                self._canary.consider(model, asked, decode, encoded)

    async def _encode(
        self, model: str, asked: encoder_pb2.EncodeRequest, deadline: Deadline, trail: Trail
    ) -> encoder_pb2.EncodeResponse:
        encoded = await self._encoding.encode(model, asked, deadline, trail)
        trail.visual_tokens_in = sum(image.source_tokens for image in encoded.images)
        trail.visual_tokens_kept = sum(len(image.index) for image in encoded.images)
        return encoded

    def _model(self, wanted: str, method: types_pb2.Method) -> str:
        self._budget.deposit()
        if wanted:
            auth.caller().check(wanted)
        model = self._pools.resolve(wanted, auth.caller().may_ask)
        auth.caller().check(model)
        validation.check_method(method, self._pools.methods(model))
        return model

    def _encode_request(
        self, request: pb.GenerateRequest | pb.CompressRequest, trail: Trail, instruction: str
    ) -> encoder_pb2.EncodeRequest:
        return encoder_pb2.EncodeRequest(
            request_id=trail.request_id,
            images=request.images,
            instruction=instruction,
            budget=request.budget,
            method=request.method,
            wire_dtype=request.wire_dtype or _WIRE[self._settings.wire_dtype],
        )

    @staticmethod
    def _decode_request(
        request: pb.GenerateRequest, encoded: encoder_pb2.EncodeResponse, trail: Trail
    ) -> decoder_pb2.DecodeRequest:
        decode = decoder_pb2.DecodeRequest(
            request_id=trail.request_id,
            fingerprint=encoded.fingerprint,
            messages=request.messages,
            images=encoded.images,
            sampling=request.sampling,
            cache_salt=auth.caller().salt,
        )
        if request.sampling.temperature > 0 and not request.sampling.HasField("seed"):
            # Chosen here, so that another replica goes on with the same draws.
            decode.sampling.seed = secrets.randbits(62)
        return decode
