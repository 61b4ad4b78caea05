"""The time that selection takes: all methods in one run, medians over rounds without the first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from fsr_core.compressor import create
from fsr_core.evaluation.method_configs import Run
from fsr_core.tokens import VisualTokens

__all__ = ["ROUNDS", "selection_times"]


ROUNDS = {1: 16, 32: 3}  # by the size of a batch, after a first round that does not count


@torch.inference_mode()
def selection_times(
    samples: Sequence[VisualTokens], compared: Sequence[Run], budgets: Sequence[int], batch: int
) -> dict[str, dict[int, float]]:
    """Milliseconds per picture in batches of `batch`, 1 or 32, by method and budget."""
    last = min(len(samples), batch * (ROUNDS[batch] + 1))
    batches = [samples[start : start + batch] for start in range(0, last, batch)]
    times: dict[tuple[str, int], list[float]] = {(run.label, k): [] for run in compared for k in budgets}
    compressors = {run.label: create(run.method, **run.options[0]) for run in compared}
    for batch_samples in batches:
        # All methods get the same pictures at nearly the same time, so a busy machine slows all of them equally.
        for label, k in times:
            start = time.perf_counter()
            compressors[label].compress_batch(batch_samples, [k] * len(batch_samples))
            times[label, k].append(1000 * (time.perf_counter() - start) / len(batch_samples))
    medians: dict[str, dict[int, float]] = {run.label: {} for run in compared}
    for (label, k), round_times in times.items():
        medians[label][k] = median(round_times[1:] or round_times)
    return medians
