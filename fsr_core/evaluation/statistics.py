"""Accuracies with bootstrap intervals. A difference is taken question by question, so that common luck cancels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Resampler", "verdict"]

RESAMPLES = 4000
LEVEL = 95  # percent


@dataclass(frozen=True)
class Estimate:
    """A mean over questions and its 95 % bootstrap interval, all in 0..1 (differences in -1..1)."""

    mean: float
    low: float
    high: float


class Resampler:
    """Bootstrap resamples of a set's questions, the same for all of its figures.

    Values are shares of right answers, or differences of shares: [questions], or [seeds, questions] of a method that
    draws at random. Then seeds are resampled too, so that the interval is about other seeds, not only about these. A
    resample has one seed less than there are, with which the bootstrap's variance of their mean is unbiased. A single
    seed counts as if it were the only one.
    """

    def __init__(self, questions: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        uniform = np.full(questions, 1 / questions)
        # How often each question is in each resample; a mean over a resample is then a matrix product.
        self.weights = rng.multinomial(questions, uniform, size=resamples).astype(np.float32) / questions
        self._seed = seed

    def estimate(self, values: np.ndarray) -> Estimate:
        """The mean of `values` with an interval of its own (percentiles)."""
        low, high = np.percentile(self._means(values), [50 - LEVEL / 2, 50 + LEVEL / 2])
        return Estimate(float(values.mean()), float(low), float(high))

    def simultaneous(self, family: Sequence[np.ndarray]) -> list[Estimate]:
        """The mean of each member, with intervals of which in 95 % of runs all hold.

        Each is mean +- c standard errors. c is the 95th percentile, over resamples, of the largest deviation in the
        family, in standard errors (max-T; Westfall and Young, 1993). Members may depend on each other. One that is the
        same for every question has an interval of length 0.
        """
        if not family:
            return []
        centres = np.array([values.mean() for values in family])
        deviations = np.stack([self._means(values) for values in family]) - centres[:, None]
        errors = np.sqrt((deviations**2).mean(1))
        varies = errors > 1e-7
        largest = np.abs(deviations[varies] / errors[varies, None]).max(0, initial=0)
        widths = np.where(varies, np.percentile(largest, LEVEL) * errors, 0)
        return [Estimate(float(c), float(c - w), float(c + w)) for c, w in zip(centres, widths, strict=True)]

    def _means(self, values: np.ndarray) -> np.ndarray:
        """The mean of each resample: [resamples]."""
        if values.ndim == 1:
            return self.weights @ values.astype(np.float32)
        seeds = len(values)
        of_seeds = self.weights @ values.T.astype(np.float32)
        if seeds == 1:
            return of_seeds[:, 0]
        rng = np.random.default_rng([self._seed, seeds])  # the same draws for all values of so many seeds
        draws = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=len(of_seeds)) / (seeds - 1)
        return (of_seeds * draws).sum(1)


def verdict(difference: Estimate) -> str:
    """`wins` or `loses` if the difference's interval lies above or below zero, else `ties`."""
    if difference.low > 0:
        return "wins"
    return "loses" if difference.high < 0 else "ties"
