"""Accuracies with bootstrap intervals; a difference is taken question by question, so that luck cancels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Resampler", "verdict"]

RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its 95 % bootstrap interval, as shares."""

    mean: float
    low: float
    high: float


class Resampler:
    """The same bootstrap resamples of a set's questions for everything that is said about it (percentile method)."""

    def __init__(self, questions: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        dice = np.random.default_rng(seed)
        even = np.full(questions, 1 / questions)
        # How often each question is in each resample; a mean over a resample is then a matrix product.
        self.weights = dice.multinomial(questions, even, size=resamples).astype(np.float32) / questions

    def estimate(self, values: np.ndarray) -> Estimate:
        """Of the mean of `values` [questions]: shares of right answers, or differences of such."""
        means = self.weights @ values.astype(np.float32)
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(float(values.mean()), float(low), float(high))


def verdict(difference: Estimate) -> str:
    """`wins`, `loses` or `ties`: whether the interval of a difference leaves out zero."""
    if difference.low > 0:
        return "wins"
    return "loses" if difference.high < 0 else "ties"
