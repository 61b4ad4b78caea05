"""The figures that are reported of one set: accuracies, ablations, automatic budgets, and what Focus asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import ceil, floor
from typing import Any

import numpy as np

from fsr_core.budget import Budget
from fsr_core.evaluation.answers import Outcome
from fsr_core.evaluation.method_configs import ABLATIONS, AUTO_BUDGETS, FULL, OURS, REFERENCE, MethodConfig, Run
from fsr_core.evaluation.question_sets import EncodedSet
from fsr_core.evaluation.statistics import Estimate, Resampler, verdict
from fsr_core.tiny.questions import KINDS, is_correct

__all__ = ["SetFigures", "pooled"]


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
        return self._accuracy(self.full_right())

    def rows(self, compared: Sequence[Run], budgets: Sequence[int]) -> list[dict[str, Any]]:
        """Accuracy of each method at each budget, its difference from the reference, and its agreement with all."""
        full, rows = self._outcome_of(MethodConfig(FULL, None)).answers, []
        for run in compared:
            for k in budgets:
                configs = run.configs(Budget(tokens=k))
                same = [[a == b for a, b in zip(self._outcome_of(c).answers, full, strict=True)] for c in configs]
                row = {"method": run.label, "budget": k, "seeds": len(configs)} | self._accuracy(self.right(run, k))
                rows.append(row | {"agreement": asdict(self._resampler.estimate(np.array(same)))})
        return differences(rows, self.right, compared, REFERENCE, self._resampler)

    def ablations(self, budgets: Sequence[int]) -> list[dict[str, Any]]:
        """Accuracy of each ablation at each budget, and its difference from FSR with its defaults."""
        rows, compared = [], []
        for group, labels in ABLATIONS.items():
            for label, options in labels.items():
                compared.append(Run(f"{group}: {label}", REFERENCE, [options]))
                for k in budgets:
                    row = {"method": compared[-1].label, "group": group, "label": label, "budget": k}
                    rows.append(row | self._accuracy(self.right(compared[-1], k)))
        return differences(rows, self.right, compared, REFERENCE, self._resampler)

    def auto_budgets(self) -> list[dict[str, Any]]:
        """Each automatic budget against the fixed budget of the same mean.

        That mean lies between two whole numbers of tokens; the accuracy is interpolated between them.
        """
        rows, changes = [], []
        for label, budget in AUTO_BUDGETS.items():
            config = MethodConfig(REFERENCE, budget)
            kept, right = np.array(self._outcome_of(config).kept), self._right(config)
            mean = float(kept.mean())
            below, above = (self._right(MethodConfig(REFERENCE, Budget(tokens=k))) for k in (floor(mean), ceil(mean)))
            fixed = below + (mean - floor(mean)) * (above - below)
            tokens = {"least": int(kept.min()), "most": int(kept.max()), "mean": mean}
            row = {"label": label, "tokens": tokens, "fixed": asdict(self._resampler.estimate(fixed))}
            rows.append(row | self._accuracy(right))
            changes.append(right - fixed)
        return _with_differences(rows, self._resampler.simultaneous(changes))

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

    def full_right(self) -> np.ndarray:
        """1.0 for each right answer with all tokens, else 0.0: [questions]."""
        return self._right(MethodConfig(FULL, None))

    def right(self, run: Run, budget: int) -> np.ndarray:
        """1.0 for each right answer, else 0.0: [questions], of several seeds [seeds, questions]."""
        rights = [self._right(config) for config in run.configs(Budget(tokens=budget))]
        return np.stack(rights) if len(rights) > 1 else rights[0]

    def _right(self, config: MethodConfig) -> np.ndarray:
        """1.0 for each right answer, else 0.0: [questions]."""
        if config.key not in self._correct:
            pairs = zip(self._encoded.items, self._outcome_of(config).answers, strict=True)
            right = [is_correct(question, answer) for (_, question), answer in pairs]
            self._correct[config.key] = np.array(right, dtype=float)
        return self._correct[config.key]

    def _by_kind(self, values: np.ndarray) -> dict[str, float]:
        kinds = [kind for kind in KINDS if (self._kinds == kind).any()]
        return {kind: float(values[..., self._kinds == kind].mean()) for kind in kinds}

    def _accuracy(self, right: np.ndarray) -> dict[str, Any]:
        return {"accuracy": asdict(self._resampler.estimate(right)), "kinds": self._by_kind(right)}


def pooled(
    sets: Sequence[SetFigures], compared: Sequence[Run], budgets: Sequence[int], resamples: int
) -> dict[str, Any]:
    """All questions of several sets together: accuracies, and differences from the reference and from our method.

    What is compared with our method tells whether it beats every other.
    """

    def right(run: Run, budget: int) -> np.ndarray:
        return np.concatenate([one.right(run, budget) for one in sets], axis=-1)

    questions, labels = right(compared[0], budgets[0]).shape[-1], [run.label for run in compared]
    resampler, rows = Resampler(questions, resamples), []
    for run in compared:
        for k in budgets:
            row = {"method": run.label, "budget": k, "seeds": len(run.options)}
            rows.append(row | {"accuracy": asdict(resampler.estimate(right(run, k)))})
    references = [name for name in (REFERENCE, OURS) if name in labels]
    figures = {name: differences(rows, right, compared, name, resampler) for name in references}
    full = resampler.estimate(np.concatenate([one.full_right() for one in sets]))
    return {"questions": questions, "full": {"accuracy": asdict(full)}, "rows": rows, "against": figures}


def differences(
    rows: list[dict[str, Any]],
    right: Callable[[Run, int], np.ndarray],
    compared: Sequence[Run],
    reference: str,
    resampler: Resampler,
) -> list[dict[str, Any]]:
    """The rows, each with its difference from the reference with its defaults, question by question.

    The intervals hold together for all rows, and whether a difference is more than chance follows from them.
    """
    by_label, defaults = {run.label: run for run in compared}, Run(reference, reference)
    family = [right(by_label[row["method"]], row["budget"]) - right(defaults, row["budget"]) for row in rows]
    return _with_differences(rows, resampler.simultaneous(family))


def _with_differences(rows: list[dict[str, Any]], estimates: list[Estimate]) -> list[dict[str, Any]]:
    return [
        row | {"difference": asdict(one), "verdict": verdict(one)} for row, one in zip(rows, estimates, strict=True)
    ]
