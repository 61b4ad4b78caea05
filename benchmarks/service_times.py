"""Measures the work of a request at each tier of a running system. It is imported, not run.

All of it is CPU time, so that other programs hardly matter: that of the system's processes, and for the vision tower
that of this process, which runs it on the same weights. How many answers a decoder's step had, its metrics say.
"""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.costs import cpu_seconds
from fsr.cli.load_generator import Outcome, Plan, drive
from fsr.cli.load_summary import Summary, summarise
from fsr.client import AsyncClient
from fsr_core import Budget, create
from fsr_core.backbones import load_encoder
from fsr_core.spread import compress_images
from fsr_core.tiny.scenes import draw, make_scene

__all__ = ["TOGETHER", "Costs", "costs", "tower_seconds"]

QUESTION = "Where is the red star?"
TOGETHER = 16  # clients, and pictures in a batch, that are compared with a single one
ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of a run: mean CPU seconds of a request by part of the system, and what `fsr load` says of it.

    `batch` is the mean number of answers in a decoder's step. `others` are the cores that everything else on the
    machine kept busy, Ray's own processes included, and `busy` those that all of it kept busy.
    """

    cpu: dict[str, float]
    batch: float
    others: float
    busy: float
    summary: Summary


def costs(
    addresses: Mapping[str, str],
    pictures: Sequence[bytes],
    budget: int,
    answer: int,
    clients: int,
    *,
    requests: int,
    seconds: float,
) -> Costs:
    """A closed loop of questions whose answers have exactly `answer` tokens; the first of each client do not count."""
    options: Any = {"budget": budget, "max_tokens": answer, "ignore_eos": True}
    plan = Plan(
        images=pictures,
        question=QUESTION,
        clients=clients,
        requests=requests,
        seconds=seconds,
        warmup=2 * clients if requests > 4 * clients else 0,
        options=options,
    )

    async def run() -> list[Outcome]:
        async with AsyncClient(addresses["gateway"]) as client:
            return await drive(client, plan)

    steps, tokens = _steps(addresses)
    before, machine, own, began = cpu_seconds(), _busy(), time.process_time(), time.monotonic()
    outcomes = asyncio.run(run())
    own, machine, wall = time.process_time() - own, _busy() - machine, time.monotonic() - began
    spent = {part: seconds - before[part] for part, seconds in cpu_seconds().items()} | {"caller": own}
    if errors := [outcome.error for outcome in outcomes if outcome.error]:
        raise SystemExit(f"error: {len(errors)} of {len(outcomes)} requests failed ({errors[0]})")
    steps_after, tokens_after = _steps(addresses)
    return Costs(
        batch=(tokens_after - tokens) / max(1.0, steps_after - steps),
        cpu={part: seconds / len(outcomes) for part, seconds in spent.items()},
        others=max(0.0, machine - sum(spent.values())) / wall,
        busy=machine / wall,
        summary=summarise(outcomes, plan),
    )


def _steps(addresses: Mapping[str, str]) -> tuple[float, float]:
    """Steps of the decoder so far, and tokens that they generated."""
    with urllib.request.urlopen(f"http://{addresses['decoder-0-metrics']}/metrics", timeout=10) as response:
        text = response.read().decode()
    values = [
        re.search(rf"^fsr_decoder_batch_size_{name}{{.*}} (.+)$", text, re.MULTILINE) for name in ("count", "sum")
    ]
    count, total = (float(value[1]) if value else 0.0 for value in values)
    return count, total


def _busy() -> float:
    """CPU seconds of the whole machine so far."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0))


@torch.inference_mode()
def tower_seconds(budget: int) -> tuple[float, float]:
    """CPU seconds of vision tower, text tower and compression for each batch, and for each picture in it."""
    torch.set_num_threads(1)
    encoder, method = load_encoder("fsr-tiny"), create("fsr")
    prepared = [encoder.preprocess(draw(make_scene(seed))) for seed in range(TOGETHER)]

    def seconds(count: int) -> float:
        timings = []
        for _ in range(ROUNDS + 2):
            began = time.process_time()
            features = encoder.encode_images(prepared[:count])
            (question,) = encoder.encode_instructions([QUESTION])
            samples = [encoder.visual_tokens(one, question) for one in features]
            compress_images(method, features, samples, [Budget.of(budget)] * count, "even")
            timings.append(time.process_time() - began)
        return median(timings[2:])

    one, several = seconds(1), seconds(TOGETHER)
    each = (several - one) / (TOGETHER - 1)
    return max(0.0, one - each), each
