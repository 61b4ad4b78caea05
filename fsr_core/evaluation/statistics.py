"""Accuracies and differences with bootstrap intervals. Differences are paired by question, so that chance cancels."""

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
    """Bootstrap resamples of a set's questions (percentile method). All estimates of a set use the same resamples."""

    def __init__(self, questions: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        probabilities = np.full(questions, 1 / questions)
        # How often each question is in each resample; a mean over a resample is then a matrix product.
        self.weights = generator.multinomial(questions, probabilities, size=resamples).astype(np.float32) / questions

    def estimate(self, values: np.ndarray) -> Estimate:
        """Mean of `values` [questions] with its interval; values are shares of right answers or differences of them."""
        means = self.weights @ values.astype(np.float32)
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(float(values.mean()), float(low), float(high))


def verdict(difference: Estimate) -> str:
    """`wins` or `loses` if the interval of a difference does not contain zero, else `ties`."""
    if difference.low > 0:
        return "wins"
    return "loses" if difference.high < 0 else "ties"
