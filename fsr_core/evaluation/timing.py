"""The time that selection takes: all methods in one run, medians over rounds without the first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from fsr_core.compressor import create
from fsr_core.tokens import VisualTokens

__all__ = ["selection_times"]


@torch.inference_mode()
def selection_times(
    samples: Sequence[VisualTokens], methods: Sequence[str], budgets: Sequence[int], rounds: int = 3, batch: int = 32
) -> dict[str, dict[int, float]]:
    """Milliseconds per picture in batches of `batch`, by method and budget."""
    batches = [samples[start : start + batch] for start in range(0, min(len(samples), batch * (rounds + 1)), batch)]
    times: dict[tuple[str, int], list[float]] = {(m, k): [] for m in methods for k in budgets}
    for batch_samples in batches:
        # All methods get the same pictures at nearly the same time, so a busy machine slows all of them equally.
        for method, k in times:
            compressor = create(method)
            start = time.perf_counter()
            compressor.compress_batch(batch_samples, [k] * len(batch_samples))
            times[method, k].append(1000 * (time.perf_counter() - start) / len(batch_samples))
    medians: dict[str, dict[int, float]] = {method: {} for method in methods}
    for (method, k), round_times in times.items():
        medians[method][k] = median(round_times[1:] or round_times)
    return medians
