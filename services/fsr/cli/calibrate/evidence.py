"""How sure it is that a budget keeps the target: bets on bounded scores, which may be looked at after every question.

Each question gives a budget a score s in [0, 1] and a reference r in [0, 1]: 1 where the mean score itself must reach
the target t, or the score with all tokens where a share t of that must be reached. The budget keeps the target if the
mean of the gain s - t r is above 0.

Somebody who believes so stakes a share f of their capital at odds that are fair if the mean gain is 0: the capital is
multiplied by 1 + f (s - t r) / t, which is never negative, because a gain is at least -t. If the target is *not* kept,
the capital is a supermartingale, so the probability that it *ever* reaches 1 / alpha is at most alpha (Ville's
inequality). So one may look after every question, stop as soon as it is there, and go on later: the error stays below
alpha. The capital is divided among many shares f, from almost 0 to almost 1, so that none has to be guessed. The
product does not depend on the order of the questions.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 86, 2024; arXiv
2010.09686), for bets as tests and as confidence sequences. Orabona and Jun, "Tight concentrations and confidence
sequences from the regret of universal portfolio" (arXiv 2110.14099), for the mixture over shares; ours has the density
of their Beta(1/2, 1/2) at the end of large stakes, which decides with few questions where nearly all scores are 1.

What it needs: the questions are drawn independently of each other, and as those are that the budget will meet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from math import exp, inf, log1p

__all__ = ["Evidence", "fewest_questions"]

_STAKES = tuple(1 - ((i + 0.5) / 64) ** 2 for i in range(64))
_STEPS = 40  # of a bisection; a bound is then exact to 1e-12
_PERFECT = (1.0, 1.0)
_MOST = 10**9  # questions; nobody has more


class Evidence:
    """The scores of one budget so far. With `relative` their references are the scores with all tokens, else 1."""

    def __init__(self, relative: bool = False) -> None:
        self._relative = relative
        self._count: Counter[tuple[float, float]] = Counter()

    def add(self, score: float, reference: float = 1.0) -> None:
        """The score of one more question, and its reference; both in [0, 1]."""
        self._count[score, reference if self._relative else 1.0] += 1

    @property
    def questions(self) -> int:
        return self._count.total()

    @property
    def mean(self) -> float:
        """The mean score, with `relative` as a share of the mean reference; NaN without questions."""
        scores = sum(count * score for (score, _), count in self._count.items())
        references = sum(count * reference for (_, reference), count in self._count.items())
        return scores / references if references else float("nan")

    def capital(self, target: float, perfect: int = 0) -> float:
        """What a stake of 1 on "the target is kept" has become, if `perfect` more questions have the score 1 too.

        At 1 / alpha, "kept" is shown with confidence 1 - alpha.
        """
        return self._grown(lambda score, reference: (score - target * reference) / target, perfect)

    def doubt(self, target: float) -> float:
        """What a stake of 1 on "the target is not kept" has become."""
        most = 1.0 if self._relative else 1 - target  # no gain is larger
        if most > 0:
            return self._grown(lambda score, reference: (target * reference - score) / most)
        return inf if any(score < 1 for score, _ in self._count) else 1.0

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds of what `mean` estimates. Each holds with confidence 1 - alpha, whenever one looks."""
        most = 2.0 if self._relative else 1.0
        lower = _edge(most, lambda target: self.capital(target) >= 1 / alpha)
        upper = _edge(most, lambda target: self.doubt(target) < 1 / alpha)
        return lower, upper

    def _grown(self, returns: Callable[[float, float], float], perfect: int = 0) -> float:
        """The mean of the capitals of all stakes, from the return on a stake for a score and its reference."""
        pairs = [(returns(*pair), count) for pair, count in self._count.items()]
        pairs.append((returns(*_PERFECT), perfect))
        logs = [sum(count * log1p(stake * each) for each, count in pairs) for stake in _STAKES]
        most = max(logs)
        return exp(min(most, 700.0)) * sum(exp(value - most) for value in logs) / len(logs)


def _edge(most: float, holds: Callable[[float], bool]) -> float:
    """The largest target up to `most` for which `holds`, which is true below it and false above."""
    below, above = 0.0, most
    for _ in range(_STEPS):
        middle = (below + above) / 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below if below > 1e-9 else 0.0


def fewest_questions(target: float, alpha: float) -> float:
    """How many questions it takes to show the target if every score is 1; infinity for the target 1."""
    if target >= 1:
        return inf
    nothing = Evidence()
    return bisect_left(range(_MOST), True, key=lambda count: nothing.capital(target, count) >= 1 / alpha)
