"""The embedded engine: transformers, one KV cache a request, one token a request in turn.

A single thread owns the model: schedule -> prefill or step -> hand the token over. Requests join and leave between
steps, so a long answer never holds up a short one by more than a step of each other request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from torch.nn import functional
from transformers import DynamicCache

from fsr_core.backbones import LanguageDecoder, Prompt
from services.decoder.sampling import Sampling, choose
from services.errors import NotReady, Overloaded

__all__ = ["Token", "TransformersEngine"]

log = structlog.get_logger()


@dataclass(frozen=True)
class Token:
    """One generated token. The seconds are of the whole request so far."""

    id: int
    last: bool
    by_length: bool
    queue_seconds: float
    prefill_seconds: float


@dataclass
class _Job:
    prompt: Prompt
    sampling: Sampling
    tokens: list[int]
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Token | BaseException]
    arrived: float = field(default_factory=time.monotonic)
    cache: DynamicCache | None = None
    started: float = 0.0
    prefill_seconds: float = 0.0
    cancelled: bool = False

    def send(self, item: Token | BaseException) -> None:
        self.loop.call_soon_threadsafe(self.out.put_nowait, item)


class TransformersEngine:
    """Generates for up to `max_running` requests at a time; `max_waiting` more may queue."""

    def __init__(self, model: LanguageDecoder, max_running: int, max_waiting: int) -> None:
        self._model, self._max_running, self._max_waiting = model, max_running, max_waiting
        self._waiting: deque[_Job] = deque()
        self._running: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def generate(self, prompt: Prompt, sampling: Sampling, emitted: list[int]) -> AsyncIterator[Token]:
        """Streams the tokens after `emitted`. Leaving the iterator early frees the request's slot at once."""
        job = _Job(prompt, sampling, list(emitted), asyncio.get_running_loop(), asyncio.Queue())
        with self._wake:
            if self._closed:
                raise NotReady("decoder: is shutting down; ask another replica")
            if len(self._waiting) + len(self._running) >= self._max_running + self._max_waiting:
                raise Overloaded(f"decoder: {self._max_waiting} requests wait already; try again in a moment")
            self._waiting.append(job)
            self._wake.notify()
        try:
            while True:
                item = await job.out.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.last:
                    return
        finally:
            with self._wake:
                job.cancelled = True
                self._wake.notify()

    def close(self) -> None:
        """Ends the thread; requests that still run are told that the replica goes away."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            job = self._next()
            if job is None:
                return
            try:
                self._advance(job)
            except Exception as error:  # one request's failure must not stop the others
                log.exception("generation failed")
                job.send(error)
                job.cancelled = True

    def _next(self) -> _Job | None:
        """The request whose turn it is: a waiting one while there is a free slot, else the running ones in turn."""
        with self._wake:
            while True:
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
                self._running = deque(job for job in self._running if not job.cancelled)
                if self._closed:
                    for job in (*self._running, *self._waiting):
                        job.send(NotReady("decoder: is shutting down; ask another replica"))
                    return None
                if self._waiting and len(self._running) < self._max_running:
                    job = self._waiting.popleft()
                    self._running.append(job)
                    return job
                if self._running:
                    self._running.rotate(-1)
                    return self._running[-1]
                self._wake.wait()

    @torch.inference_mode()
    def _advance(self, job: _Job) -> None:
        model, began = self._model.model, time.monotonic()
        if job.cache is None:
            job.started, job.cache = began, DynamicCache(config=model.config)
            inputs = self._prefill(job)
            out = model(**inputs, past_key_values=job.cache, use_cache=True, logits_to_keep=1)
            logits = out.logits[0, -1]
            job.prefill_seconds = time.monotonic() - began
        else:
            last = torch.tensor([[job.tokens[-1]]], device=self._model.device)
            inputs = {"input_ids": last, "position_ids": job.prompt.step_positions(len(job.tokens) - 1)}
            logits = model(**inputs, past_key_values=job.cache, use_cache=True).logits[0, -1]
        token = choose(logits, job.sampling, len(job.tokens))
        job.tokens.append(token)
        ended = token in self._model.eos_token_ids
        room = self._model.info.context_length - len(job.prompt.token_ids)
        full = len(job.tokens) >= min(job.sampling.max_tokens, room)
        job.send(Token(token, ended or full, full and not ended, job.started - job.arrived, job.prefill_seconds))
        if ended or full:
            job.cancelled = True

    def _prefill(self, job: _Job) -> dict[str, Any]:
        """The prompt, and what another replica had already said."""
        inputs = job.prompt.model_inputs()
        if job.tokens:
            said = self._model.embed(torch.tensor(job.tokens)).unsqueeze(0)
            inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], said], dim=1)
            positions = job.prompt.step_positions(0, len(job.tokens))
            if positions is not None:
                inputs["position_ids"] = torch.cat([inputs["position_ids"], positions], dim=2)
            if "visual_pos_masks" in inputs:
                inputs["visual_pos_masks"] = functional.pad(inputs["visual_pos_masks"], (0, len(job.tokens)))
        return inputs
