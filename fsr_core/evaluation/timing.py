"""Seconds of selection: methods side by side in one run, medians of rounds, the first round dropped."""

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
    """Milliseconds a picture takes in a batch of `batch`, by method and budget."""
    batches = [samples[start : start + batch] for start in range(0, min(len(samples), batch * (rounds + 1)), batch)]
    taken: dict[tuple[str, int], list[float]] = {(m, k): [] for m in methods for k in budgets}
    for some in batches:
        # All methods meet the same pictures in the same minute, so that a busy machine slows them alike.
        for method, k in taken:
            compressor = create(method)
            start = time.perf_counter()
            compressor.compress_batch(some, [k] * len(some))
            taken[method, k].append(1000 * (time.perf_counter() - start) / len(some))
    found: dict[str, dict[int, float]] = {method: {} for method in methods}
    for (method, k), times in taken.items():
        found[method][k] = median(times[1:] or times)
    return found
