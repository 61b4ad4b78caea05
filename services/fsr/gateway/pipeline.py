"""The life of a request: validate, encode, decode, stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from fsr.common.requests.budget_text import budget_text
from fsr.gateway import validation
from fsr.gateway.callers.auth import Caller
from fsr.gateway.canary.canary import Canary
from fsr.gateway.canary.export import CanaryExport
from fsr.gateway.hops.decoder_hop import DecoderHop
from fsr.gateway.hops.encoder_hop import EncoderHop
from fsr.gateway.hops.relayed_images import relayed_images
from fsr.gateway.hops.resume import check_checkpoint, check_encoded, emitted_as_resume
from fsr.gateway.hops.usage import Stopwatch, count_usage, usage_of
from fsr.gateway.options.policy import Applied
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import RetryPolicy
from fsr.gateway.routing.pools import Pools
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.trace_attributes import answer_attributes, chat_attributes
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2
from fsr.v1 import gateway_pb2 as pb

__all__ = ["Pipeline"]

_WIRE_DTYPES = {"weights": types_pb2.DTYPE_UNSPECIFIED} | {
    name: types_pb2.Dtype.Value(f"DTYPE_{name.upper()}") for name in ("fp32", "fp16", "bf16", "int8")
}

_CHOSEN_BY = {types_pb2.CHOSEN_BY_REQUEST: "request", types_pb2.CHOSEN_BY_POLICY: "policy"}


class Pipeline:
    """Keeps no state but the requests in flight: their compact tokens, until the answer is complete."""

    def __init__(
        self, pools: Pools, metrics: Metrics, settings: GatewaySettings, export: CanaryExport | None = None
    ) -> None:
        self._pools, self._metrics, self._settings = pools, metrics, settings
        self._budget = RetryBudget(settings.retry_ratio, settings.retry_burst)
        policy = RetryPolicy(settings, metrics, self._budget)
        self._encoder_hop, self._decoder_hop = EncoderHop(pools, policy), DecoderHop(pools, policy)
        self._canary = Canary(pools, metrics, settings, export)

    def models(self, caller: Caller) -> list[pb.AvailableModel]:
        """The models that the caller may use."""
        return [
            pb.AvailableModel(
                model=name,
                encoders=len(self._pools.serving("encoder", name)),
                decoders=len(self._pools.matching_decoders(name)),
                methods=self._pools.methods(name),
                policy=caller.policy_for(name).message(),
            )
            for name in self._pools.models()
            if caller.may_use(name)
        ]

    def ready(self) -> bool:
        """Whether some model can answer: it has an encoder and a decoder of the same checkpoint."""
        return any(self._pools.ready(model) for model in self._pools.models())

    async def compress(self, request: pb.CompressRequest, context: RequestContext) -> pb.CompressResponse:
        """Raises ServiceError."""
        validation.check_compress(request, self._settings)
        model = context.record.model = self._model(request.model, request.method, context.caller)
        context.span.rename(f"compress {model}")
        applied = self._apply_policy(model, request, context)
        encode_request = self._encode_request(request, request.instruction, applied, context)
        encoded, _ = await self._encode(model, encode_request, context)
        response = pb.CompressResponse(request_id=context.record.request_id, fingerprint=encoded.fingerprint)
        for image in encoded.images:
            response.images.add().CopyFrom(image)  # a third of what it takes to make the response with them
        applied.report_to(response)
        return response

    async def generate(
        self, request: pb.GenerateRequest, context: RequestContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Raises ServiceError."""
        watch, record = Stopwatch(time.monotonic()), context.record
        instruction = validation.check_generate(request, self._settings)
        model = record.model = self._model(request.model, request.method, context.caller)
        check_checkpoint(self._pools, model, request.resume)
        context.span.rename(f"chat {model}")
        context.span.set(chat_attributes(request.sampling))
        encoded, images, explained = encoder_pb2.EncodeResponse(), [], []
        if request.images:
            applied = self._apply_policy(model, request, context)
            encode_request = self._encode_request(request, instruction, applied, context)
            with validation.instruction_as_last_turn():
                encoded, reply = await self._encode(model, encode_request, context, request.resume.fingerprint)
            check_encoded(model, request.resume, encoded.fingerprint)
            if request.explain:
                explained = _explained(encoded.images)
                reply = encoded.SerializeToString()
            images = relayed_images(reply)
        decode_request = self._decode_request(request, encoded, context)
        emitted, begun = list(request.resume.token_ids), False
        watch.shipped = time.monotonic()
        answer = self._decoder_hop.answer(model, decode_request, context, images)
        with emitted_as_resume():
            async with aclosing(answer):
                async for replica, message in answer:
                    watch.message_received(len(record.decoders), time.monotonic())
                    record.completion_tokens += len(message.token_ids)
                    emitted.extend(message.token_ids)
                    response = pb.GenerateResponse(
                        text=message.text,
                        finish_reason=message.finish_reason,
                        token_ids=message.token_ids,
                        logprobs=message.logprobs,
                        token_choices=message.token_choices,
                        images=explained,
                        fingerprint="" if begun else encoded.fingerprint or replica.last_fingerprint,
                    )
                    explained, begun = [], True
                    if message.finish_reason:
                        usage = usage_of(encoded, request.messages, message.stats, replica, record)
                        seconds = watch.seconds(encoded, message.stats, time.monotonic())
                        usage.seconds.update(seconds)
                        if request.images:
                            applied.report_to(usage)
                        count_usage(
                            self._metrics,
                            model,
                            usage,
                            replica.cost,
                            seconds,
                            resumed=len(request.resume.token_ids),
                            exemplar=context.span.exemplar,
                        )
                        context.span.set(answer_attributes(usage, message.finish_reason, seconds))
                        response.usage.CopyFrom(usage)
                    yield response
        if request.images:
            self._canary.consider(model, encode_request, decode_request, encoded, emitted)

    async def _encode(
        self, model: str, request: encoder_pb2.EncodeRequest, context: RequestContext, fingerprint: str = ""
    ) -> tuple[encoder_pb2.EncodeResponse, bytes]:
        encoded, reply = await self._encoder_hop.encode(model, request, context, fingerprint)
        record = context.record
        record.visual_tokens_in = sum(image.source_tokens for image in encoded.images)
        record.visual_tokens_kept = sum(len(image.index) for image in encoded.images)
        # Now an encoder has checked the method's name, so it may become a label.
        by = (model, record.method, record.budget_chosen_by, record.method_chosen_by)
        self._metrics.compressed_requests.labels(*by).inc()
        return encoded, reply

    def _model(self, name: str, method: types_pb2.Method, caller: Caller) -> str:
        """The model of a new request, which the caller may use and which has the method."""
        self._budget.deposit()
        if name:
            caller.check_model(name)
        model = self._pools.resolve(name, caller.may_use)
        caller.check_model(model)
        validation.check_method(method, self._pools.methods(model))
        return model

    def _apply_policy(
        self, model: str, request: pb.GenerateRequest | pb.CompressRequest, context: RequestContext
    ) -> Applied:
        """How the images are compressed. Raises InvalidRequest for a budget out of the policy's bounds, and Failed if
        the policy's method does not exist."""
        applied = context.caller.policy_for(model).apply(request.budget, request.method)
        validation.check_default_method(applied.method, self._pools.methods(model))
        record = context.record
        record.budget, record.method = budget_text(applied.budget), applied.method.name
        record.budget_chosen_by = _CHOSEN_BY[applied.budget_chosen_by]
        record.method_chosen_by = _CHOSEN_BY[applied.method_chosen_by]
        return applied

    def _encode_request(
        self,
        request: pb.GenerateRequest | pb.CompressRequest,
        instruction: str,
        applied: Applied,
        context: RequestContext,
    ) -> encoder_pb2.EncodeRequest:
        encode_request = encoder_pb2.EncodeRequest(
            request_id=context.record.request_id,
            instruction=instruction,
            budget=applied.budget,
            budget_chosen_by=applied.budget_chosen_by,
            bounds=applied.bounds,
            method=applied.method,
            wire_dtype=request.wire_dtype or _WIRE_DTYPES[self._settings.wire_dtype],
            explain=request.explain,
            cache_salt=context.caller.salt,
        )
        for image in request.images:
            encode_request.images.add().CopyFrom(image)
        return encode_request

    @staticmethod
    def _decode_request(
        request: pb.GenerateRequest, encoded: encoder_pb2.EncodeResponse, context: RequestContext
    ) -> decoder_pb2.DecodeRequest:
        decode_request = decoder_pb2.DecodeRequest(
            request_id=context.record.request_id,
            fingerprint=encoded.fingerprint or request.resume.fingerprint,
            messages=request.messages,
            sampling=request.sampling,
            cache_salt=context.caller.salt,
            emitted_token_ids=request.resume.token_ids,
        )
        if request.sampling.temperature > 0 and not request.sampling.HasField("seed"):
            # Chosen here, so that another decoder goes on with the same draws.
            decode_request.sampling.seed = secrets.randbits(62)
        return decode_request


def _explained(images: Iterable[types_pb2.CompressedImage]) -> list[types_pb2.CompressedImage]:
    """Copies without features. Takes the explanations off the images: decoders do not need them."""
    copies = []
    for image in images:
        copies.append(
            types_pb2.CompressedImage(
                index=image.index,
                source_tokens=image.source_tokens,
                focus_count=image.focus_count,
                focus_wanted=image.focus_wanted,
                merged_count=image.merged_count,
                explanation=image.explanation if image.HasField("explanation") else None,
                video=image.video,
                step_seconds=image.step_seconds,
            )
        )
        image.ClearField("explanation")
    return copies
