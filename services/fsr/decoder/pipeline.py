"""The life of a request: check, reserve KV memory, lay out the prompt, generate, write the answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing

import structlog

from fsr.common.errors import InvalidRequest, NotReady, ServiceError, status_of
from fsr.common.process.draining import Draining
from fsr.common.requests.names import check_name
from fsr.common.telemetry.logs import log_end
from fsr.common.telemetry.spans import NO_SPAN, Span
from fsr.decoder.admission import Admission
from fsr.decoder.answer import AnswerWriter
from fsr.decoder.engines.base import Engine, Generation, Token, check_prompt
from fsr.decoder.metrics import Metrics
from fsr.decoder.prompts import prompt_of, visual_rows
from fsr.decoder.sampling import Sampling
from fsr.decoder.settings import DecoderSettings
from fsr.decoder.token_texts import TokenTexts
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import types_pb2
from fsr_core.backbones import LanguageDecoder, Prompt

__all__ = ["DecodePipeline"]

# More text than this is no prompt of the model, whatever its tokenizer makes of it. A gateway lets through less.
_BYTES_PER_TOKEN = 32
_LEAST_TEXT_BYTES = 2**20
_PROGRESS_SECONDS = 5.0  # between two messages that say that the engine is at work


class DecodePipeline:
    """Answers requests with one model and one engine."""

    def __init__(
        self,
        model: LanguageDecoder,
        engine: Engine,
        admission: Admission,
        draining: Draining,
        metrics: Metrics,
        settings: DecoderSettings,
    ) -> None:
        self._model, self._engine, self._admission, self._draining = model, engine, admission, draining
        self._metrics, self._settings = metrics, settings
        self._cost = model.info.geometry.cost_model()
        self._token_texts = TokenTexts(model.tokenizer)

    def describe(self) -> pb.DescribeDecoderResponse:
        """The model, what a token costs, and the load. Raises NotReady if the replica drains or its engine is dead."""
        self._draining.check()
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

    async def decode(self, request: pb.DecodeRequest, span: Span = NO_SPAN) -> AsyncGenerator[pb.DecodeResponse, None]:
        """Streams the answer; counts the request, logs its end, and ends its span. Raises ServiceError."""
        structlog.contextvars.bind_contextvars(request_id=request.request_id, **span.log_fields)
        code, started, reason = "CANCELLED", time.monotonic(), {}
        prompt_tokens, completion_tokens = 0, len(request.emitted_token_ids)
        try:
            with self._draining.call():
                async with aclosing(self._answer(request, span)) as messages:
                    async for message in messages:
                        completion_tokens += len(message.token_ids)
                        if message.finish_reason:
                            code = "OK"  # set before the yield: the caller may leave when it has the last message
                            prompt_tokens = message.stats.prompt_tokens
                            message.stats.load.CopyFrom(self._load())
                        yield message
        except ServiceError as error:
            code, reason = status_of(error).name, {"reason": str(error)}
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            self._metrics.requests(code).inc()
            tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
            log_end("Decode", code, started, **tokens, **reason)
            span.set({"fsr.request_id": request.request_id, **{f"fsr.{name}": n for name, n in tokens.items()}})
            span.end(code, **reason)

    async def _answer(self, request: pb.DecodeRequest, span: Span) -> AsyncGenerator[pb.DecodeResponse, None]:
        arrived = time.monotonic()
        self._check_texts(request)
        sampling = Sampling.of(request.sampling, self._settings.default_max_tokens, secrets.randbits(62))
        self._check_emitted(request.emitted_token_ids, sampling)
        emitted = tuple(request.emitted_token_ids)
        with self._admission.enter(self._kv_bytes(visual_rows(request) + 1, sampling)) as ticket:
            with span.timed("queue"):
                prompt = await asyncio.to_thread(self._prompt, request, sampling)
                await ticket.reserve(self._kv_bytes(len(prompt.token_ids), sampling))
            queue_seconds = time.monotonic() - arrived
            self._metrics.queue.observe(queue_seconds, span.exemplar)
            generation = Generation(
                request_id=request.request_id,
                prompt=prompt,
                sampling=sampling,
                emitted=emitted,
                cache_salt=request.cache_salt,
            )
            writer = AnswerWriter(generation, self._model, self._token_texts, self._metrics, queue_seconds, span)
            complete = writer.complete_before()
            if complete is not None:
                yield complete
                return
            with closing(writer):
                async with (
                    aclosing(self._engine.generate(generation)) as tokens,
                    aclosing(self._with_progress(tokens)) as tokens_and_progress,
                ):
                    async for token in tokens_and_progress:
                        message = pb.DecodeResponse() if token is None else writer.write(token)
                        yield message
                        if message.finish_reason:
                            return

    async def _with_progress(self, tokens: AsyncGenerator[Token, None]) -> AsyncGenerator[Token | None, None]:
        """The tokens. Before the first one comes a None now and then, as long as the engine is at work.

        A prompt may take longer than a gateway waits for a replica that says nothing.
        """
        first, steps = asyncio.ensure_future(anext(tokens)), self._engine.steps
        try:
            while not (await asyncio.wait({first}, timeout=_PROGRESS_SECONDS))[0]:
                if self._engine.steps > steps:
                    steps = self._engine.steps
                    yield None
            try:
                yield first.result()
            except StopAsyncIteration:
                return
        finally:
            if first.cancel():
                await asyncio.wait({first})  # else the tokens could not be closed
        async for token in tokens:
            yield token

    def _check_texts(self, request: pb.DecodeRequest) -> None:
        for field in ("request_id", "fingerprint", "cache_salt"):
            check_name(field, getattr(request, field))
        most = max(_LEAST_TEXT_BYTES, self._model.info.context_length * _BYTES_PER_TOKEN)
        size = sum(len(part.text.encode()) for message in request.messages for part in message.parts)
        if size > most:
            raise InvalidRequest(f"messages: {size} bytes of text exceed {most}; shorten them")

    def _check_emitted(self, emitted: Sequence[int], sampling: Sampling) -> None:
        most = min(sampling.max_tokens, self._model.info.context_length)
        if len(emitted) > most:
            raise InvalidRequest(
                f"emitted_token_ids: {len(emitted)} are more than {most}, the most tokens of this answer; raise"
                " sampling.max_tokens, or ask a model with a longer context"
            )
        vocabulary = self._model.info.geometry.vocab
        for at, token in enumerate(emitted):
            if token >= vocabulary:
                raise InvalidRequest(
                    f"emitted_token_ids[{at}]: {token} is not in the model's vocabulary of {vocabulary} tokens; send"
                    " the ids that a decoder of this model emitted"
                )

    def _prompt(self, request: pb.DecodeRequest, sampling: Sampling) -> Prompt:
        prompt = prompt_of(request, self._model)
        check_prompt(prompt, self._model, sampling.max_tokens, self._engine.position_limit)
        return prompt

    def _kv_bytes(self, prompt_tokens: int, sampling: Sampling) -> int:
        """The most KV memory that prompt and answer can take, in whole steps of the engine."""
        tokens = min(prompt_tokens + sampling.max_tokens, self._model.info.context_length)
        step = self._engine.kv_granularity
        return -(-tokens // step) * step * self._cost.kv_bytes_per_token

    def _load(self) -> pb.DecoderLoad:
        return pb.DecoderLoad(
            running=self._admission.busy,
            waiting=self._admission.waiting,
            kv_bytes_capacity=self._admission.capacity,
            kv_bytes_free=self._admission.capacity - self._admission.reserved,
            max_waiting=self._admission.max_waiting,
        )
