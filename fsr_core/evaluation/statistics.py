"""Accuracies with bootstrap intervals. A difference is taken question by question, so that common luck cancels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Resampler", "verdict"]

RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its 95 % bootstrap interval, all in 0..1 (differences in -1..1)."""

    mean: float
    low: float
    high: float


class Resampler:
    """Bootstrap resamples of a set's questions, the same for all of its figures (percentile method)."""

    def __init__(self, questions: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        uniform = np.full(questions, 1 / questions)
        # How often each question is in each resample; a mean over a resample is then a matrix product.
        self.weights = rng.multinomial(questions, uniform, size=resamples).astype(np.float32) / questions

    def estimate(self, values: np.ndarray) -> Estimate:
        """The mean of `values` [questions], which are shares of right answers or differences of shares."""
        means = self.weights @ values.astype(np.float32)
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(float(values.mean()), float(low), float(high))


def verdict(difference: Estimate) -> str:
    """`wins` or `loses` if the difference's interval lies above or below zero, else `ties`."""
    if difference.low > 0:
        return "wins"
    return "loses" if difference.high < 0 else "ties"
