"""The embedded engine: transformers, continuous batching over embeddings.

A single thread owns the model. Each step of it lets requests leave and join, prefills a bounded number of prompt
tokens, and gives every running request one more token in one batched forward pass.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import structlog
import torch
from torch import Tensor

from fsr.common.errors import NotReady, ServiceError
from fsr.decoder.engines.base import Engine, Generation, Token
from fsr.decoder.engines.transformers.batch import Inputs, Row, decode_inputs, prefill_inputs
from fsr.decoder.engines.transformers.kv_cache import PooledCache
from fsr.decoder.engines.transformers.kv_slots import Places
from fsr.decoder.metrics import Metrics
from fsr.decoder.sampling import choose
from fsr_core.backbones import LanguageDecoder

__all__ = ["TransformersEngine"]

log = structlog.get_logger()
_GOING_AWAY = "decoder: is shutting down; ask another replica"
_FAILED = "decoder: failed while generating; ask another replica"
_FAILURES = 3  # steps in a row that may fail before the engine counts as dead


@dataclass(eq=False)
class _Job:
    generation: Generation
    out: asyncio.Queue[Token | ServiceError] = field(default_factory=asyncio.Queue)
    row: Row | None = None
    began: float = 0.0
    prefill_seconds: float = 0.0
    over: bool = False

    @property
    def decodes(self) -> bool:
        """Whether its next token comes from a decode step."""
        return self.row is not None and self.row.prefilled and not self.over


class TransformersEngine(Engine):
    """Generates for all that it is given at once; its KV pool holds `kv_bytes`."""

    name = "transformers"

    def __init__(
        self, model: LanguageDecoder, metrics: Metrics, kv_bytes: int, prefill_tokens: int = 512, prefix_block: int = 16
    ) -> None:
        geometry = model.info.geometry
        self._bytes_per_token = geometry.cost_model().kv_bytes_per_token
        if kv_bytes < self._bytes_per_token:
            raise ValueError(f"kv-memory: {kv_bytes} bytes hold no token; one takes {self._bytes_per_token}")
        self._places = Places(kv_bytes // self._bytes_per_token, prefix_block)
        self.kv_capacity = self._places.count * self._bytes_per_token
        self._cache = PooledCache(geometry.layers, self._places.count)
        self._model, self._metrics, self._prefill_tokens = model, metrics, prefill_tokens
        self._loop, self.dead = asyncio.get_running_loop(), asyncio.Event()
        self._arrived: list[_Job] = []
        self._running: list[_Job] = []
        self._wake = threading.Condition()
        self._closed, self._failures = False, 0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def kv_used(self) -> int:
        return self._bytes_per_token * sum(job.row.filled for job in list(self._running) if job.row is not None)

    def kv_cached(self) -> int:
        return self._bytes_per_token * self._places.cached

    async def generate(self, generation: Generation) -> AsyncGenerator[Token, None]:
        job = _Job(generation)
        with self._wake:
            if self._closed or self.dead.is_set():
                raise NotReady(_GOING_AWAY)
            self._arrived.append(job)
            self._wake.notify()
        try:
            while True:
                item = await job.out.get()
                if isinstance(item, ServiceError):
                    raise item
                yield item
                if item.last:
                    return
        finally:
            with self._wake:
                job.over = True
                self._wake.notify()

    async def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        try:
            while self._let_leave_and_join():
                sent: list[tuple[_Job, Token | ServiceError]] = []
                self._step(self._to_prefill(), sent, self._prefill)
                self._step([job for job in self._running if job.decodes], sent, self._decode)
                self._deliver(sent)
        finally:
            with self._wake:
                left = [*self._running, *self._arrived]
                died, self._closed = not self._closed, True
            self._deliver([(job, NotReady(_GOING_AWAY)) for job in left])
            if died:
                log.error("the engine is dead")
                self._loop.call_soon_threadsafe(self.dead.set)

    def _let_leave_and_join(self) -> bool:
        """Frees what ended, takes what arrived, sleeps while there is nothing; False when the engine is to end."""
        while True:
            with self._wake:
                if self._closed or self._failures >= _FAILURES:
                    return False
                # Seen at once with what arrived: admission lets a request in because another one has left.
                gone = [job for job in self._running if job.over]
                if not (self._arrived or self._running):
                    self._wake.wait()
                    continue
                arrived = [job for job in self._arrived if not job.over]
                self._arrived.clear()
            for job in gone:
                self._running.remove(job)
                if job.row is not None:
                    self._places.give_back(job.row.lease)
            for job in arrived:
                self._start(job)
            if self._running:
                return True

    def _start(self, job: _Job) -> None:
        """If it fails, so does this request, and no other."""
        try:
            job.row, job.began = self._row(job.generation), time.monotonic()
            self._running.append(job)
        except Exception:
            log.exception("a request cannot start", request_id=job.generation.request_id)
            self._deliver([(job, NotReady(_FAILED))])

    def _row(self, generation: Generation) -> Row:
        prompt, length = generation.prompt, len(generation.prompt.token_ids)
        room = min(generation.sampling.max_tokens, self._model.info.context_length - length)
        seen = prompt.visual_mask.nonzero()
        # Short of the prompt's last token: there must be one left to compute the answer's first from.
        head = prompt.token_ids[: int(seen[0]) if len(seen) else length - 1].tolist()
        lease = self._places.take(length + room, head, generation.cache_salt)
        try:
            return Row(generation, lease, room, list(generation.emitted))
        except Exception:
            self._places.give_back(lease)
            raise

    def _step(self, jobs: list[_Job], sent, work) -> None:  # type: ignore[no-untyped-def]
        """One forward pass. If it fails, so do the requests in it, and no others."""
        if not jobs:
            return
        try:
            with torch.inference_mode():
                work(jobs, sent)
            self._failures = 0
        except Exception:
            log.exception("a step failed", request_ids=[job.generation.request_id for job in jobs])
            self._failures += 1
            for job in jobs:
                job.over = True
                sent.append((job, NotReady(_FAILED)))

    def _to_prefill(self) -> list[_Job]:
        """Jobs to prefill together in this step: the first come, and as many as fit the bound, padding included."""
        chosen: list[_Job] = []
        longest = 0
        for job in self._running:
            if job.row is None or job.row.prefilled or job.over:
                continue
            longest = max(longest, job.row.pending - job.row.filled)
            if chosen and longest * (len(chosen) + 1) > self._prefill_tokens:
                break
            chosen.append(job)
        return chosen

    def _prefill(self, jobs: list[_Job], sent: list[tuple[_Job, Token | ServiceError]]) -> None:
        rows = [job.row for job in jobs if job.row is not None]
        counts = [min(row.pending - row.filled, self._prefill_tokens) for row in rows]
        logits = self._forward(prefill_inputs(rows, counts, self._model))
        done: list[int] = []
        for at, (job, row, count) in enumerate(zip(jobs, rows, counts, strict=True)):
            row.filled += count
            if row.prefilled:
                self._places.share(row.lease)
                job.prefill_seconds = time.monotonic() - job.began
                done.append(at)
        if done:
            self._append([jobs[at] for at in done], logits[done], sent)

    def _decode(self, jobs: list[_Job], sent: list[tuple[_Job, Token | ServiceError]]) -> None:
        rows = [job.row for job in jobs if job.row is not None]
        self._metrics.batch_size.observe(len(rows))
        logits = self._forward(decode_inputs(rows, self._model))
        for row in rows:
            row.filled += 1
        self._append(jobs, logits, sent)

    def _forward(self, inputs: Inputs) -> Tensor:
        """Logits [B, V] after the last token of each row."""
        self._cache.layout = inputs.layout
        out = self._model.model(**inputs.arguments, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1]
        return logits

    def _append(self, jobs: list[_Job], logits: Tensor, sent: list[tuple[_Job, Token | ServiceError]]) -> None:
        """Chooses each row's next token."""
        best = logits.argmax(-1).tolist()
        for job, likeliest, own in zip(jobs, best, logits, strict=True):
            row, sampling = job.row, job.generation.sampling
            assert row is not None
            token = likeliest
            if not sampling.is_argmax:
                seen = torch.cat([job.generation.prompt.token_ids, torch.tensor(row.tokens, dtype=torch.long)])
                token = choose(own, sampling, seen, len(row.tokens))
            logprob = float(own.float().log_softmax(-1)[token]) if sampling.logprobs else None
            row.tokens.append(token)
            ended = token in self._model.eos_token_ids and not sampling.ignore_eos
            full = len(row.tokens) >= row.room
            last = ended or full
            if last:  # and never back to False: the caller may have left during this step
                job.over = True
            sent.append((job, Token(token, last, full and not ended, logprob, job.prefill_seconds, row.lease.cached)))

    def _deliver(self, sent: list[tuple[_Job, Token | ServiceError]]) -> None:
        def put() -> None:
            for job, item in sent:
                job.out.put_nowait(item)

        if sent:
            self._loop.call_soon_threadsafe(put)
