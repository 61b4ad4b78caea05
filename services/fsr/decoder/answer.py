"""From the engine's tokens to the messages of one answer, with its figures."""

from __future__ import annotations

import time

from fsr.common.telemetry.spans import NO_SPAN, Span
from fsr.decoder.detokenizer import TextStream
from fsr.decoder.engines.base import Generation, Token
from fsr.decoder.metrics import Metrics
from fsr.decoder.token_texts import TokenTexts
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import types_pb2
from fsr_core.backbones import LanguageDecoder

__all__ = ["AnswerWriter"]


class AnswerWriter:
    """Writes the messages of one answer, and observes its durations and token counts in the metrics and in its span."""

    def __init__(
        self,
        generation: Generation,
        model: LanguageDecoder,
        token_texts: TokenTexts,
        metrics: Metrics,
        queue_seconds: float,
        span: Span = NO_SPAN,
    ) -> None:
        self._generation, self._model, self._metrics, self._span = generation, model, metrics, span
        self._token_texts = token_texts
        self._first_token_at = 0.0
        prompt = generation.prompt
        metrics.tokens_in("text").inc(prompt.text_tokens)
        metrics.tokens_in("visual").inc(prompt.visual_tokens)
        self._stats = pb.DecodeStats(
            prompt_tokens=len(prompt.token_ids),
            visual_tokens=prompt.visual_tokens,
            completion_tokens=len(generation.emitted),
            queue_seconds=queue_seconds,
        )
        self._text = TextStream(model.tokenizer, generation.sampling.stop)
        for token in generation.emitted:
            self._text.push(token)
        # Whether a token of the answer has added to its text. Nobody asks unless the caller wants log probabilities.
        self._begun = generation.sampling.logprobs and any(token_texts.of(token) for token in generation.emitted)

    def complete_before(self) -> pb.DecodeResponse | None:
        """The only message, if the emitted tokens are a complete answer; else None."""
        reason = self._reason_before()
        if not reason:
            return None
        return pb.DecodeResponse(text=self._text.finish(), finish_reason=reason, stats=self._stats)

    def _reason_before(self) -> pb.FinishReason.ValueType:
        """Why the emitted tokens are a complete answer; unspecified if they are not."""
        emitted, sampling = self._generation.emitted, self._generation.sampling
        ended = bool(emitted) and emitted[-1] in self._model.eos_token_ids and not sampling.ignore_eos
        if self._text.stopped or ended:
            return pb.FINISH_REASON_STOP
        free_context = self._model.info.context_length - len(self._generation.prompt.token_ids)
        if len(emitted) >= min(sampling.max_tokens, free_context):
            return pb.FINISH_REASON_LENGTH
        return pb.FINISH_REASON_UNSPECIFIED

    def write(self, token: Token) -> pb.DecodeResponse:
        """The message of one token. The last one has a finish reason and the stats."""
        self._count(token)
        message = pb.DecodeResponse(text=self._text.push(token.id), token_ids=[token.id])
        if token.logprob is not None:
            message.logprobs.append(token.logprob)
            message.token_choices.append(self._choice(token, token.logprob))
        if token.last or self._text.stopped:
            by_length = token.by_length and not self._text.stopped
            message.text += self._text.finish()
            message.finish_reason = pb.FINISH_REASON_LENGTH if by_length else pb.FINISH_REASON_STOP
            self._finish()
            message.stats.CopyFrom(self._stats)
        return message

    def _choice(self, token: Token, logprob: float) -> types_pb2.TokenChoice:
        """The token and the likeliest at its place, with their texts."""

        def described(id_: int, logprob: float) -> types_pb2.TokenLogprob:
            text = self._token_texts.of(id_, begins=not self._begun)
            return types_pb2.TokenLogprob(id=id_, text=text, logprob=logprob)

        choice = types_pb2.TokenChoice(token=described(token.id, logprob), top=[described(*one) for one in token.top])
        self._begun = self._begun or bool(self._token_texts.of(token.id))
        return choice

    def _count(self, token: Token) -> None:
        self._metrics.tokens_out.inc()
        self._stats.completion_tokens += 1
        if not self._first_token_at:
            self._first_token_at = time.monotonic()
            self._stats.prefill_seconds, self._stats.cached_tokens = token.prefill_seconds, token.cached_tokens
            self._metrics.prefill.observe(token.prefill_seconds, self._span.exemplar)
            began = self._first_token_at - token.prefill_seconds
            self._span.stage("prefill", began, self._first_token_at, {"fsr.cached_tokens": token.cached_tokens})
            self._metrics.tokens_cached.inc(token.cached_tokens)

    def _finish(self) -> None:
        self._stats.decode_seconds = time.monotonic() - self._first_token_at
        self._metrics.decode.observe(self._stats.decode_seconds, self._span.exemplar)
        generated = self._stats.completion_tokens - len(self._generation.emitted)
        if generated > 1:
            self._metrics.per_token.observe(self._stats.decode_seconds / (generated - 1), self._span.exemplar)

    def close(self) -> None:
        """The answer is complete, or nobody waits for the rest of it."""
        if self._first_token_at:
            seconds = self._stats.decode_seconds or time.monotonic() - self._first_token_at
            self._span.stage("decode", self._first_token_at, self._first_token_at + seconds)
