"""The figures that are reported of one set: accuracies, ablations, automatic budgets, and what Focus asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import ceil, floor
from typing import Any

import numpy as np

from fsr_core.budget import Budget
from fsr_core.evaluation.answers import Outcome
from fsr_core.evaluation.method_configs import ABLATIONS, AUTO_BUDGETS, FULL, REFERENCE, MethodConfig, seed_options
from fsr_core.evaluation.question_sets import EncodedSet
from fsr_core.evaluation.statistics import Resampler, verdict
from fsr_core.tiny.questions import KINDS, is_correct

__all__ = ["SetFigures"]


class SetFigures:
    """Computes the figures of one set from its answers.

    `outcome_of` gives the answers under a configuration; it is called again and again, so it should read stored ones.
    """

    def __init__(
        self, encoded: EncodedSet, outcome_of: Callable[[MethodConfig], Outcome], resampler: Resampler
    ) -> None:
        self._encoded, self._outcome_of, self._resampler = encoded, outcome_of, resampler
        self._kinds = np.array([question.kind for _, question in encoded.items])
        self._correct: dict[str, np.ndarray] = {}

    def full(self) -> dict[str, Any]:
        """Accuracy with all tokens, overall and by kind of question."""
        return self._accuracy(self._right(MethodConfig(FULL, None)))

    def row(self, method: str, budget: int, seeds: int) -> dict[str, Any]:
        """Accuracy of a method at a budget, its difference from the reference, and its agreement with all tokens."""
        configs = [MethodConfig(method, Budget(tokens=budget), options) for options in seed_options(method, seeds)]
        right = np.mean([self._right(config) for config in configs], axis=0)
        full = self._outcome_of(MethodConfig(FULL, None)).answers
        same = [[a == b for a, b in zip(self._outcome_of(c).answers, full, strict=True)] for c in configs]
        agreement = self._resampler.estimate(np.mean(same, axis=0))
        row = {"method": method, "budget": budget, "seeds": len(configs)}
        row |= self._accuracy(right) | {"agreement": asdict(agreement)}
        return row | self._difference(right, self._right(MethodConfig(REFERENCE, Budget(tokens=budget))))

    def ablations(self, budgets: Sequence[int]) -> list[dict[str, Any]]:
        """Accuracy of each ablation at each budget, and its difference from FSR with its defaults."""
        rows = []
        for group, labels in ABLATIONS.items():
            for label, options in labels.items():
                for k in budgets:
                    right = self._right(MethodConfig(REFERENCE, Budget(tokens=k), options))
                    row = {"group": group, "label": label, "budget": k} | self._accuracy(right)
                    rows.append(row | self._difference(right, self._right(MethodConfig(REFERENCE, Budget(tokens=k)))))
        return rows

    def auto_budgets(self) -> list[dict[str, Any]]:
        """Each automatic budget against the fixed budget of the same mean.

        That mean lies between two whole numbers of tokens; the accuracy is interpolated between them.
        """
        rows = []
        for label, budget in AUTO_BUDGETS.items():
            config = MethodConfig(REFERENCE, budget)
            kept, right = np.array(self._outcome_of(config).kept), self._right(config)
            mean = float(kept.mean())
            below, above = (self._right(MethodConfig(REFERENCE, Budget(tokens=k))) for k in (floor(mean), ceil(mean)))
            fixed = below + (mean - floor(mean)) * (above - below)
            tokens = {"least": int(kept.min()), "most": int(kept.max()), "mean": mean}
            row = {"label": label, "tokens": tokens, "fixed": asdict(self._resampler.estimate(fixed))}
            rows.append(row | self._accuracy(right) | self._difference(right, fixed))
        return rows

    def focus(self, budget: int) -> dict[str, Any]:
        """How many tokens Focus asks for, and how often that is more than the budget (the clamp)."""
        focus_wanted = np.array(self._outcome_of(MethodConfig(REFERENCE, Budget(tokens=budget))).focus_wanted)
        return {
            "budget": budget,
            "mean": float(focus_wanted.mean()),
            "quantiles": [float(q) for q in np.quantile(focus_wanted, [0.1, 0.5, 0.9])],
            "clamped": float((focus_wanted > budget).mean()),
            "clamped_by_kind": self._by_kind(focus_wanted > budget),
        }

    def _right(self, config: MethodConfig) -> np.ndarray:
        """1.0 for each right answer, else 0.0: [questions]."""
        if config.key not in self._correct:
            pairs = zip(self._encoded.items, self._outcome_of(config).answers, strict=True)
            right = [is_correct(question, answer) for (_, question), answer in pairs]
            self._correct[config.key] = np.array(right, dtype=float)
        return self._correct[config.key]

    def _by_kind(self, values: np.ndarray) -> dict[str, float]:
        kinds = [kind for kind in KINDS if (self._kinds == kind).any()]
        return {kind: float(values[self._kinds == kind].mean()) for kind in kinds}

    def _accuracy(self, right: np.ndarray) -> dict[str, Any]:
        return {"accuracy": asdict(self._resampler.estimate(right)), "kinds": self._by_kind(right)}

    def _difference(self, right: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
        """The difference from the reference, question by question, and whether it is more than chance."""
        difference = self._resampler.estimate(right - reference)
        return {"difference": asdict(difference), "verdict": verdict(difference)}
