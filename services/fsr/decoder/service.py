"""The decoder's gRPC face: decode the request, call the engine, encode its tokens."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import structlog

from fsr.common.errors import InvalidRequest, NotReady, ServiceError, status_of, stream_errors, unary_errors
from fsr.common.telemetry import log_end
from fsr.decoder.admission import Admission
from fsr.decoder.detokenizer import TextStream
from fsr.decoder.engines.base import Engine, Generation, check_prompt
from fsr.decoder.metrics import Metrics
from fsr.decoder.prompts import prompt_of, visual_rows
from fsr.decoder.sampling import Sampling
from fsr.decoder.settings import DecoderSettings
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import decoder_pb2_grpc, types_pb2
from fsr_core.backbones import LanguageDecoder, Prompt

__all__ = ["DecoderServicer"]

_DRAIN_POLL_SECONDS = 0.02


class DecoderServicer(decoder_pb2_grpc.DecoderServiceServicer):
    """Serves one model with one engine."""

    def __init__(
        self,
        model: LanguageDecoder,
        engine: Engine,
        admission: Admission,
        metrics: Metrics,
        settings: DecoderSettings,
    ) -> None:
        self._model, self._engine, self._admission = model, engine, admission
        self._metrics, self._settings = metrics, settings
        self._cost = model.info.geometry.cost_model()
        self._draining = False

    async def drain(self, seconds: float) -> None:
        """Takes nothing new from now on; returns once what there is has been answered, or after `seconds`."""
        self._draining, end = True, time.monotonic() + seconds
        while (self._admission.busy or self._admission.waiting) and time.monotonic() < end:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    def _check_ready(self) -> None:
        if self._draining:
            raise NotReady("decoder: is shutting down; ask another replica")

    def _load(self) -> pb.DecoderLoad:
        return pb.DecoderLoad(
            running=self._admission.busy,
            waiting=self._admission.waiting,
            kv_bytes_capacity=self._admission.capacity,
            kv_bytes_free=self._admission.capacity - self._admission.reserved,
            max_waiting=self._admission.max_waiting,
        )

    @unary_errors
    async def DescribeDecoder(
        self, request: pb.DescribeDecoderRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeDecoderResponse:
        self._check_ready()
        if self._engine.dead.is_set():
            raise NotReady("decoder: its engine has died; ask another replica")
        info, cost = self._model.info, self._cost
        return pb.DescribeDecoderResponse(
            model=types_pb2.ModelDescription(
                model=self._settings.announced_name,
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
            load=self._load(),
        )

    @stream_errors
    async def Decode(
        self, request: pb.DecodeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DecodeResponse]:
        structlog.contextvars.bind_contextvars(request_id=request.request_id)
        code, began, reason = "CANCELLED", time.monotonic(), {}
        prompt, tokens = 0, len(request.emitted_token_ids)
        try:
            async with aclosing(self._answer(request)) as messages:
                async for message in messages:
                    tokens += len(message.token_ids)
                    if message.finish_reason:
                        code = "OK"  # already: the caller may leave once it has the last message
                        prompt = message.stats.prompt_tokens
                    yield message
        except ServiceError as error:
            code, reason = status_of(error).name, {"reason": str(error)}
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            self._metrics.requests(code).inc()
            log_end("Decode", code, began, prompt_tokens=prompt, completion_tokens=tokens, **reason)

    async def _answer(self, request: pb.DecodeRequest):  # type: ignore[no-untyped-def]
        self._check_ready()
        arrived = time.monotonic()
        sampling = Sampling.of(request.sampling, self._settings.default_max_tokens, secrets.randbits(62))
        emitted = tuple(request.emitted_token_ids)
        self._check_emitted(emitted, sampling)
        with self._admission.enter(self._bytes(visual_rows(request) + 1, sampling)) as place:
            prompt = await asyncio.to_thread(self._prompt, request)
            await place.reserve(self._bytes(len(prompt.token_ids), sampling))
            queued = time.monotonic() - arrived
            self._metrics.queue.observe(queued)
            generation = Generation(request.request_id, prompt, sampling, emitted, request.cache_salt)
            async with aclosing(self._stream(generation, queued)) as messages:
                async for message in messages:
                    yield message

    def _check_emitted(self, emitted: tuple[int, ...], sampling: Sampling) -> None:
        vocabulary = self._model.info.geometry.vocab
        for at, token in enumerate(emitted):
            if token >= vocabulary:
                raise InvalidRequest(f"emitted_token_ids[{at}]: {token} is not among the model's {vocabulary} tokens")
        if len(emitted) > sampling.max_tokens:
            raise InvalidRequest(
                f"emitted_token_ids: {len(emitted)} are more than sampling.max_tokens = {sampling.max_tokens}"
            )

    def _prompt(self, request: pb.DecodeRequest) -> Prompt:
        prompt = prompt_of(request, self._model)
        check_prompt(prompt, self._model)
        return prompt

    def _bytes(self, prompt_tokens: int, sampling: Sampling) -> int:
        """KV memory that prompt and answer may come to."""
        most = min(prompt_tokens + sampling.max_tokens, self._model.info.context_length)
        step = self._engine.kv_granularity
        return -(-most // step) * step * self._cost.kv_bytes_per_token

    async def _stream(self, generation: Generation, queued: float):  # type: ignore[no-untyped-def]
        prompt, sampling, m = generation.prompt, generation.sampling, self._metrics
        m.tokens_in("text").inc(prompt.text_tokens)
        m.tokens_in("visual").inc(prompt.visual_tokens)
        stats = pb.DecodeStats(
            prompt_tokens=len(prompt.token_ids),
            visual_tokens=prompt.visual_tokens,
            completion_tokens=len(generation.emitted),
            queue_seconds=queued,
        )
        text = TextStream(self._model.tokenizer, sampling.stop)
        for earlier in generation.emitted:
            text.push(earlier)
        over = self._already_over(generation, text)
        if over:
            stats.load.CopyFrom(self._load())
            yield pb.DecodeResponse(text=text.finish(), finish_reason=over, stats=stats)
            return
        first = 0.0
        async with aclosing(self._engine.generate(generation)) as tokens:
            async for token in tokens:
                m.tokens_out.inc()
                if not first:
                    first = time.monotonic()
                    stats.prefill_seconds, stats.cached_tokens = token.prefill_seconds, token.cached_tokens
                    m.prefill.observe(token.prefill_seconds)
                    m.tokens_cached.inc(token.cached_tokens)
                stats.completion_tokens += 1
                message = pb.DecodeResponse(text=text.push(token.id), token_ids=[token.id])
                if token.logprob is not None:
                    message.logprobs.append(token.logprob)
                if not (token.last or text.stopped):
                    yield message
                    continue
                by_length = token.by_length and not text.stopped
                message.text += text.finish()
                message.finish_reason = pb.FINISH_REASON_LENGTH if by_length else pb.FINISH_REASON_STOP
                stats.decode_seconds = time.monotonic() - first
                m.decode.observe(stats.decode_seconds)
                here = stats.completion_tokens - len(generation.emitted)
                if here > 1:
                    m.per_token.observe(stats.decode_seconds / (here - 1))
                stats.load.CopyFrom(self._load())
                message.stats.CopyFrom(stats)
                yield message
                return

    def _already_over(self, generation: Generation, text: TextStream) -> pb.FinishReason.ValueType:
        """Why nothing is left to say after the emitted tokens; unspecified where something is."""
        emitted, sampling = generation.emitted, generation.sampling
        if text.stopped or (emitted and emitted[-1] in self._model.eos_token_ids and not sampling.ignore_eos):
            return pb.FINISH_REASON_STOP
        room = self._model.info.context_length - len(generation.prompt.token_ids)
        if len(emitted) >= min(sampling.max_tokens, room):
            return pb.FINISH_REASON_LENGTH
        return pb.FINISH_REASON_UNSPECIFIED
