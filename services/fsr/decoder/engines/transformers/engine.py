"""The embedded engine: transformers, continuous batching over embeddings.

One thread runs the model. In each step it removes finished requests, adds new ones, and makes one forward pass, which
prefills a bounded number of prompt tokens and generates one more token for every running answer.

This is own code because the library's continuous batching takes token ids alone, and no embeddings.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import structlog

from fsr.common.errors import NotReady, ServiceError
from fsr.decoder.engines.base import Engine, Generation, Token
from fsr.decoder.engines.kv_budget import kv_budget
from fsr.decoder.engines.transformers.batch import RunningSequence
from fsr.decoder.engines.transformers.runner import BatchRunner
from fsr.decoder.metrics import Metrics
from fsr.decoder.settings import DecoderSettings
from fsr_core.backbones import LanguageDecoder, dtype_of, load_decoder

__all__ = ["TransformersEngine"]

log = structlog.get_logger()
_SHUTTING_DOWN = "decoder: is shutting down; ask another replica"
_FAILED = "decoder: failed while generating; ask another replica"
_MAX_FAILURES = 3  # after so many failed steps in a row the engine counts as dead


@dataclass(eq=False)
class _Request:
    generation: Generation
    output: asyncio.Queue[Token | ServiceError] = field(default_factory=asyncio.Queue)
    finished: bool = False


_Outputs = list[tuple[_Request, Token | ServiceError]]


class TransformersEngine(Engine):
    """Generates all answers that it is given at once; its KV pool has `kv_bytes` bytes."""

    name = "transformers"

    def __init__(
        self, model: LanguageDecoder, metrics: Metrics, kv_bytes: int, prefill_tokens: int = 512, prefix_block: int = 16
    ) -> None:
        self._runner, self._metrics = BatchRunner(model, kv_bytes, prefill_tokens, prefix_block), metrics
        self.kv_capacity = self._runner.kv_capacity
        self._loop, self.dead = asyncio.get_running_loop(), asyncio.Event()
        self._arrived: list[_Request] = []
        self._running: dict[_Request, RunningSequence] = {}
        self._changed = threading.Condition()
        self._closed, self._failures = False, 0
        self._others_until = 0.0  # by time.monotonic(); before that no long prompt has its next pass
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    async def start(cls, settings: DecoderSettings, metrics: Metrics) -> tuple[LanguageDecoder, TransformersEngine]:
        if settings.engine_options or settings.engine_folder:
            raise ValueError("engine: transformers takes no --engine-options and no --engine-folder; leave them out")
        dtype = dtype_of(settings.dtype)
        model = await asyncio.to_thread(load_decoder, settings.model, device=settings.device, dtype=dtype)
        return model, cls(model, metrics, kv_budget(settings), settings.prefill_tokens, settings.prefix_block)

    def kv_used(self) -> int:
        return self._runner.kv_used(list(self._running.values()))

    def kv_cached(self) -> int:
        return self._runner.kv_cached

    async def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        request = _Request(generation)
        with self._changed:
            if self._closed or self.dead.is_set():
                raise NotReady(_SHUTTING_DOWN)
            self._arrived.append(request)
            self._changed.notify()
        try:
            while True:
                item = await request.output.get()
                if isinstance(item, ServiceError):
                    raise item
                yield item
                if item.last:
                    return
        finally:
            with self._changed:
                request.finished = True
                self._changed.notify()

    async def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The engine's thread."""
        try:
            while self._schedule():
                self._deliver(self._step(self._next_to_prefill(), self._answering()))
        finally:
            with self._changed:
                unanswered = [*self._running, *self._arrived]
                died, self._closed = not self._closed, True
            self._deliver([(request, NotReady(_SHUTTING_DOWN)) for request in unanswered])
            if died:
                log.error("the engine is dead")
                self._loop.call_soon_threadsafe(self.dead.set)

    def _schedule(self) -> bool:
        """Removes finished requests, adds new ones, sleeps while there are none; False when the engine must end."""
        while True:
            with self._changed:
                if self._closed or self._failures >= _MAX_FAILURES:
                    return False
                # Both under one lock: admission lets a request in because another one has finished.
                finished = [request for request in self._running if request.finished]
                if not (self._arrived or self._running):
                    self._changed.wait()
                    continue
                arrived = [request for request in self._arrived if not request.finished]
                self._arrived.clear()
            for request in finished:
                self._runner.release(self._running.pop(request))
            for request in arrived:
                self._add(request)
            if self._running:
                return True

    def _add(self, request: _Request) -> None:
        """Adds a request to the batch. If that fails, this request alone fails."""
        try:
            self._running[request] = self._runner.start(request.generation)
        except Exception:
            log.exception("a request cannot start", request_id=request.generation.request_id)
            self._deliver([(request, NotReady(_FAILED))])

    def _next_to_prefill(self) -> list[_Request]:
        """Requests to prefill together, in order of arrival.

        After a pass of a long prompt, running answers and other prompts have as much time.
        """
        waiting = [
            request for request, sequence in self._running.items() if not (sequence.prefilled or request.finished)
        ]
        if time.monotonic() < self._others_until:
            others = [request for request in waiting if not self._runner.is_long(self._running[request])]
            if others or self._answering():
                waiting = others
        return waiting[: self._runner.fit_in_one_prefill([self._running[request] for request in waiting])]

    def _answering(self) -> list[_Request]:
        """Requests that get their next token in each pass."""
        return [request for request, one in self._running.items() if one.prefilled and not request.finished]

    def _step(self, prefill: list[_Request], answering: list[_Request]) -> _Outputs:
        """One forward pass. If it fails, the new requests in it fail; without new ones, all in it."""
        requests, began = prefill + answering, time.monotonic()
        if not requests:
            return []
        try:
            tokens = self._runner.step([self._running[request] for request in requests])
            self._failures = 0
            self.steps += 1
        except Exception:
            failed = prefill or answering
            log.exception("a step failed", request_ids=[request.generation.request_id for request in failed])
            self._failures += 1
            for request in failed:
                request.finished = True
            return [(request, NotReady(_FAILED)) for request in failed]
        if answering:
            self._metrics.batch_size.observe(len(answering))
        sequences = [self._running[request] for request in prefill]
        if any(self._runner.is_long(one) and not one.prefilled for one in sequences):
            now = time.monotonic()
            self._others_until = now + (now - began)
        outputs: _Outputs = []
        for request, token in zip(requests, tokens, strict=True):
            if token is not None:
                if token.last:  # never set to False here: the caller may have left during this step
                    request.finished = True
                outputs.append((request, token))
        return outputs

    def _deliver(self, outputs: _Outputs) -> None:
        def put() -> None:
            for request, item in outputs:
                request.output.put_nowait(item)

        if outputs:
            self._loop.call_soon_threadsafe(put)
