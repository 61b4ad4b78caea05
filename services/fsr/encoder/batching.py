"""Batches for the towers: they form while the towers are busy, and a job that finds them idle starts at once.

Serve's own batches wait for a fixed time, also while nothing else is there to do; with a wait of zero they hold one job
each, however many come while one runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fsr.encoder.requests.image_job import ImageJob, ImageResult

__all__ = ["Batches", "RunBatch"]

RunBatch = Callable[[Sequence[ImageJob]], list[ImageResult | Exception]]
_Waiting = tuple[ImageJob, asyncio.Future[ImageResult | Exception]]


class Batches:
    """Runs jobs in a thread of its own, one batch after the other, in the order in which they came.

    A batch holds what waits, up to `max_size` by the jobs' sizes; a larger job is a batch alone. `wait_seconds` is how
    long a job that finds the towers idle waits for others. Used by one event loop.
    """

    def __init__(self, run_batch: RunBatch, max_size: int, wait_seconds: float = 0.0) -> None:
        self._run_batch, self._max_size, self._wait_seconds = run_batch, max_size, wait_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="towers")
        self._waiting: deque[_Waiting] = deque()
        self._busy = False

    async def run(self, jobs: Sequence[ImageJob]) -> list[ImageResult | Exception]:
        """The outcome of each job. Jobs of a caller that goes away are left out if no batch has them yet."""
        loop = asyncio.get_running_loop()
        outcomes = [loop.create_future() for _ in jobs]
        self._waiting.extend(zip(jobs, outcomes, strict=True))
        if not self._busy:
            self._busy = True
            if self._wait_seconds:
                loop.call_later(self._wait_seconds, self._start_next)
            else:
                loop.call_soon(self._start_next)  # after what else is ready now, which may bring more jobs
        return await asyncio.gather(*outcomes)

    def _start_next(self) -> None:
        batch = self._take()
        self._busy = bool(batch)
        if batch:
            jobs = [job for job, _ in batch]
            running = asyncio.get_running_loop().run_in_executor(self._thread, self._run_batch, jobs)
            running.add_done_callback(partial(self._end, [outcome for _, outcome in batch]))

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting:
            job, outcome = self._waiting[0]
            if batch and size + job.size > self._max_size:
                break
            self._waiting.popleft()
            if not outcome.cancelled():
                batch.append((job, outcome))
                size += job.size
        return batch

    def _end(
        self,
        outcomes: Sequence[asyncio.Future[ImageResult | Exception]],
        batch: asyncio.Future[list[ImageResult | Exception]],
    ) -> None:
        self._start_next()  # first: the towers wait for nothing
        error = batch.exception()
        for i, outcome in enumerate(outcomes):
            if outcome.cancelled():
                continue
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(batch.result()[i])
