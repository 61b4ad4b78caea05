"""A simulation of the queues: gateways, encoders and decoders under a load, with SimPy.

An open load has Poisson arrivals. In a closed one, each client asks again as soon as it has its answer. What is fixed:
the length of prompts and answers, and the work of each; what varies is what requests meet on their way.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from math import nan
from statistics import quantiles
from typing import Any

import simpy

from fsr_core.planning.service_times import ServiceTimes
from fsr_core.planning.shared_cores import alone, shared
from fsr_core.planning.simulated_tiers import Decoder, encoder_replica

__all__ = ["Deployment", "Load", "Simulated", "simulate"]

_Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Replicas and their limits.

    Attributes:
        gateways, picture_cores, encoders, decoders: replicas; requests wait in one queue before each of the first
            three tiers.
        answers_at_a_time: most running answers of a decoder.
        prompts_in_a_pass: most prompts that a decoder prefills between two steps.
        batch, batch_seconds: most pictures in a batch of the vision tower, and the longest wait for more.
        shared_cores: None if each replica has its own machine; else all share so many cores.
        background, background_seconds: cores of these that other programs take on average, and the mean length of the
            pieces in which they take them.
    """

    gateways: int = 1
    picture_cores: int = 1
    encoders: int = 1
    decoders: int = 1
    answers_at_a_time: int = 64
    prompts_in_a_pass: int = 1
    batch: int = 16
    batch_seconds: float = 0.005
    shared_cores: float | None = None
    background: float = 0.0
    background_seconds: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Exactly one of ``rate`` (requests a second) and ``clients``; it lasts ``seconds`` after ``warm_up`` seconds."""

    rate: float | None = None
    clients: int | None = None
    seconds: float = 30.0
    warm_up: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.clients is None):
            raise ValueError("load: give either a rate or clients")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Answers that were complete within the measured time; seconds at the caller, NaN without answers."""

    answers: int
    answers_per_second: float
    first_token_p50: float
    first_token_p95: float
    answer_p50: float
    answer_p95: float


def simulate(times: ServiceTimes, deployment: Deployment, answer_tokens: int, load: Load) -> Simulated:
    """Runs the load. The same arguments give the same figures."""
    run = _Run(times, deployment, answer_tokens, load)
    end = load.warm_up + load.seconds
    run.env.run(until=end)
    firsts, totals = zip(*run.measured, strict=True) if run.measured else ((), ())
    return Simulated(
        answers=len(totals),
        answers_per_second=len(totals) / load.seconds,
        first_token_p50=_percentile(firsts, 50),
        first_token_p95=_percentile(firsts, 95),
        answer_p50=_percentile(totals, 50),
        answer_p95=_percentile(totals, 95),
    )


def _percentile(values: tuple[float, ...], share: int) -> float:
    if len(values) < 2:
        return values[0] if values else nan
    return quantiles(values, n=100, method="inclusive")[share - 1]


@dataclass
class _Run:
    times: ServiceTimes
    deployment: Deployment
    answer_tokens: int
    load: Load
    measured: list[tuple[float, float]] = field(default_factory=list)  # seconds to the first token, and to the last

    def __post_init__(self) -> None:
        deployment, times = self.deployment, self.times
        self.env = env = simpy.Environment()
        self._random = random.Random(self.load.seed)
        self._work = alone(env) if deployment.shared_cores is None else shared(env, deployment.shared_cores)
        self._gateways = simpy.Resource(env, deployment.gateways)
        self._picture_cores = simpy.Resource(env, deployment.picture_cores)
        self._pictures = simpy.Store(env)
        for _ in range(deployment.encoders):
            batches = encoder_replica(
                env, self._pictures, self._work, times, deployment.batch, deployment.batch_seconds
            )
            env.process(batches)
        self._decoders = [
            Decoder(
                env,
                self._work,
                times,
                answer_tokens=self.answer_tokens,
                slots=deployment.answers_at_a_time,
                prompts_in_a_pass=deployment.prompts_in_a_pass,
                relay=self._relay,
            )
            for _ in range(deployment.decoders)
        ]
        if deployment.background:
            env.process(self._others(deployment.background, deployment.background_seconds))
        for _ in range(self.load.clients or 0):
            env.process(self._client())
        if self.load.rate is not None:
            env.process(self._arrivals(self.load.rate))

    def _arrivals(self, rate: float) -> _Process:
        while True:
            yield self.env.timeout(self._random.expovariate(rate))
            self.env.process(self._request())

    def _others(self, cores: float, piece: float) -> _Process:
        """Other programs: pieces of work that come at random."""
        while True:
            yield self.env.timeout(self._random.expovariate(cores / piece))
            self._work(self._random.expovariate(1 / piece))

    def _client(self) -> _Process:
        yield self.env.timeout(self._random.random() * self.load.warm_up)  # not all at once
        while True:
            yield from self._request()

    def _request(self) -> _Process:
        """Through all tiers, and noted if its answer ends within the measured time."""
        began, times = self.env.now, self.times
        yield self.env.timeout(times.delay)
        yield from self._at(self._gateways, times.gateway)
        yield from self._at(self._picture_cores, times.picture)
        encoded = self.env.event()
        self._pictures.put(encoded)
        yield encoded
        answer = self._decoder().ask()
        yield answer.first
        first = self.env.now
        yield answer.last
        if self.env.now >= self.load.warm_up:
            self.measured.append((first - began, self.env.now - began))

    def _at(self, tier: simpy.Resource, seconds: float) -> _Process:
        """Waits for one of the tier's replicas, and works there."""
        with tier.request() as turn:
            yield turn
            yield self._work(seconds)

    def _decoder(self) -> Decoder:
        """Of two decoders the one with fewer requests, as the gateway chooses."""
        pair = self._random.sample(self._decoders, min(2, len(self._decoders)))
        return min(pair, key=lambda decoder: decoder.outstanding)

    def _relay(self, tokens: int, arrived: list[simpy.Event]) -> None:
        if self.times.relay_step or self.times.relay:
            self.env.process(self._relayed(tokens, arrived))
        else:
            for event in arrived:
                event.succeed()

    def _relayed(self, tokens: int, arrived: list[simpy.Event]) -> _Process:
        yield from self._at(self._gateways, self.times.relay_step + tokens * self.times.relay)
        for event in arrived:
            event.succeed()
