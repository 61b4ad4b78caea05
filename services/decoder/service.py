"""The decoder's gRPC face: decode the request, call the engine, encode its tokens."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import grpc
import structlog
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import decoder_pb2_grpc, types_pb2

from fsr_core.backbones import LanguageDecoder
from services.decoder.engines.transformers import TransformersEngine
from services.decoder.prompts import prompt_of
from services.decoder.sampling import Sampling
from services.decoder.settings import DecoderSettings
from services.decoder.text import TextStream
from services.errors import InvalidRequest, stream_errors

__all__ = ["DecoderServicer"]


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Serves one model with one engine."""

    def __init__(self, model: LanguageDecoder, engine: TransformersEngine, settings: DecoderSettings) -> None:
        self._model, self._engine, self._settings = model, engine, settings

    async def DescribeDecoder(self, request, context):  # type: ignore[no-untyped-def]
        info = self._model.info
        cost = info.geometry.cost_model()
        return pb.DescribeDecoderResponse(
            model=types_pb2.ModelDescription(
                model=self._settings.served_name or self._settings.model,
                fingerprint=self._model.fingerprint,
                feature_dim=info.feature_dim,
                context_length=info.context_length,
            ),
            cost=types_pb2.CostModel(
                flops_constant=cost.flops_constant,
                flops_linear=cost.flops_linear,
                flops_quadratic=cost.flops_quadratic,
                kv_bytes_per_token=cost.kv_bytes_per_token,
            ),
        )

    @stream_errors
    async def Decode(
        self, request: pb.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DecodeResponse]:
        structlog.contextvars.bind_contextvars(request_id=request.request_id)
        sampling = Sampling.of(request.sampling, self._settings.default_max_tokens, secrets.randbits(62))
        prompt = await asyncio.to_thread(prompt_of, request, self._model)
        emitted = list(request.emitted_token_ids)
        if len(emitted) >= sampling.max_tokens:
            raise InvalidRequest("emitted_token_ids: already as long as sampling.max_tokens; nothing is left to say")
        text = TextStream(self._model.tokenizer, sampling.stop)
        for earlier in emitted:
            text.push(earlier)
        first, count = None, len(emitted)
        async for token in self._engine.generate(prompt, sampling, emitted):
            first = first or time.monotonic()
            count += 1
            piece = text.push(token.id)
            if not (token.last or text.stopped):
                yield pb.DecodeResponse(text=piece, token_ids=[token.id])
                continue
            by_length = token.by_length and not text.stopped
            yield pb.DecodeResponse(
                text=piece + text.finish(),
                token_ids=[token.id],
                finish_reason=pb.FINISH_REASON_LENGTH if by_length else pb.FINISH_REASON_STOP,
                stats=pb.DecodeStats(
                    prompt_tokens=len(prompt.token_ids),
                    visual_tokens=prompt.visual_tokens,
                    completion_tokens=count,
                    queue_seconds=token.queue_seconds,
                    prefill_seconds=token.prefill_seconds,
                    decode_seconds=time.monotonic() - first,
                ),
            )
            return
