"""Encoder and decoder in simulated time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import simpy

from fsr_core.planning.service_times import ServiceTimes
from fsr_core.planning.shared_cores import Run

__all__ = ["Answer", "Decoder", "encoder_replica"]

_Process = Generator[simpy.Event, Any, None]


def encoder_replica(
    env: simpy.Environment, queue: simpy.Store, run: Run, times: ServiceTimes, most: int, wait: float
) -> _Process:
    """One replica: takes batches of at most ``most`` pictures off the queue; it waits ``wait`` seconds to fill one.

    Each item of the queue is an event, which succeeds when its picture is encoded.
    """
    while True:
        batch = [(yield queue.get())]
        if len(queue.items) < most - 1:
            yield env.timeout(wait)
        while queue.items and len(batch) < most:
            batch.append((yield queue.get()))
        yield run(times.tower_batch + len(batch) * times.tower)
        for encoded in batch:
            encoded.succeed()


@dataclass(frozen=True, slots=True)
class Answer:
    """Events: its first token, and its last one, have reached the caller."""

    first: simpy.Event
    last: simpy.Event


class Decoder:
    """Continuous batching, as both engines do it: some prefill, then one token for every running answer, and again.

    ``relay`` sends a number of tokens on, and is called with the events that succeed when they have arrived.
    """

    def __init__(
        self,
        env: simpy.Environment,
        run: Run,
        times: ServiceTimes,
        *,
        answer_tokens: int,
        slots: int,
        prompts_in_a_pass: int,
        relay: Callable[[int, list[simpy.Event]], None],
    ) -> None:
        self._env, self._run, self._times, self._relay = env, run, times, relay
        self._tokens, self._slots, self._prompts = answer_tokens, slots, prompts_in_a_pass
        self._waiting: deque[Answer] = deque()
        self._running: list[tuple[int, int, Answer]] = []  # a heap: the step of its last token, a number, the answer
        self._steps = self._number = 0
        self._arrival = env.event()
        env.process(self._loop())

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    def ask(self) -> Answer:
        """A new request."""
        answer = Answer(self._env.event(), self._env.event())
        self._waiting.append(answer)
        if not self._arrival.triggered:
            self._arrival.succeed()
        return answer

    def _loop(self) -> _Process:
        while True:
            if not self.outstanding:
                self._arrival = self._env.event()
                yield self._arrival
            yield from self._prefill()
            if self._running:
                yield from self._step()

    def _prefill(self) -> _Process:
        """One pass over the prompts that wait, as many as fit."""
        count = min(len(self._waiting), self._prompts, self._slots - len(self._running))
        if count <= 0:
            return
        yield self._run(self._times.prefill_pass + count * self._times.prefill)
        answers = [self._waiting.popleft() for _ in range(count)]
        ended = [answer.last for answer in answers] if self._tokens == 1 else []
        self._relay(count, [*(answer.first for answer in answers), *ended])
        if not ended:
            for answer in answers:
                self._number += 1
                heappush(self._running, (self._steps + self._tokens - 1, self._number, answer))

    def _step(self) -> _Process:
        count = len(self._running)
        yield self._run(self._times.step_seconds(count))
        self._steps += 1
        ended = []
        while self._running and self._running[0][0] <= self._steps:
            ended.append(heappop(self._running)[2].last)
        self._relay(count, ended)
