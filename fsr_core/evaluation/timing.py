"""How long methods take to select tokens: all in one run, medians over rounds, without the first round."""

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
    """Milliseconds for each picture in a batch of `batch` pictures, by method and budget."""
    batches = [samples[start : start + batch] for start in range(0, min(len(samples), batch * (rounds + 1)), batch)]
    timings: dict[tuple[str, int], list[float]] = {(m, k): [] for m in methods for k in budgets}
    for pictures in batches:
        # All methods get the same pictures within the same minute, so that a busy machine slows them alike.
        for method, k in timings:
            compressor = create(method)
            start = time.perf_counter()
            compressor.compress_batch(pictures, [k] * len(pictures))
            timings[method, k].append(1000 * (time.perf_counter() - start) / len(pictures))
    medians: dict[str, dict[int, float]] = {method: {} for method in methods}
    for (method, k), times in timings.items():
        medians[method][k] = median(times[1:] or times)
    return medians
