"""Runs every config on every set and computes the reported figures from the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from fsr_core.backbones import load_decoder, load_encoder
from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.budget import Budget
from fsr_core.evaluation.answers import Outcome, answer_questions, cached_answers
from fsr_core.evaluation.method_configs import ABLATIONS, AUTO, FULL, REFERENCE, MethodConfig, path_digest, seeds_of
from fsr_core.evaluation.question_sets import EncodedSet, encode_set, questions, set_size
from fsr_core.evaluation.statistics import Resampler, verdict
from fsr_core.evaluation.timing import selection_times
from fsr_core.tiny.questions import KINDS, is_correct

__all__ = ["Plan", "Runner"]


@dataclass(frozen=True)
class Plan:
    """What to run: sets with the number of questions of each, methods, budgets, and the number of random seeds."""

    sets: Mapping[str, int]
    methods: Sequence[str]
    budgets: Sequence[int]
    seeds: int = 3
    ablate: bool = True
    resamples: int = 4000

    def __post_init__(self) -> None:
        for name, limit in self.sets.items():
            if not 1 <= limit <= set_size(name):
                raise ValueError(f"limit: {limit} is outside the set {name!r}; give 1 to {set_size(name)}")
        if self.seeds < 1 or not self.budgets or min(self.budgets) < 1:
            raise ValueError("seeds, budgets: give at least one seed, and budgets of at least one token")
        for method in self.methods:
            MethodConfig(method, None).compressor()

    def configs(self, name: str) -> list[MethodConfig]:
        """Every config of a set once, in the order in which they run.

        The fixed budgets that automatic ones are compared with run later, because they depend on the answers.
        """
        configs = [MethodConfig(FULL, None), *(MethodConfig(REFERENCE, Budget(tokens=k)) for k in self.budgets)]
        for method in self.methods:
            for options in seeds_of(method, self.seeds):
                configs += [MethodConfig(method, Budget(tokens=k), options) for k in self.budgets]
        if self.ablate and name == next(iter(self.sets)):
            for group in ABLATIONS.values():
                for options in group.values():
                    configs += [MethodConfig(REFERENCE, Budget(tokens=k), options) for k in self.budgets]
            configs += [MethodConfig(REFERENCE, budget) for budget in AUTO.values()]
        return list({config.key: config for config in configs}.values())


@dataclass
class _Set:
    """One set: its answers, and the figures computed from them."""

    encoded: EncodedSet
    answer: Callable[[MethodConfig], Outcome]
    resampler: Resampler
    full: Outcome
    right: dict[str, np.ndarray] = field(default_factory=dict)

    def correct(self, config: MethodConfig) -> np.ndarray:
        """1.0 for a right answer and 0.0 for a wrong one, [questions]."""
        if config.key not in self.right:
            answered = zip(self.encoded.items, self.answer(config).answers, strict=True)
            self.right[config.key] = np.array(
                [is_correct(question, text) for (_, question), text in answered], dtype=float
            )
        return self.right[config.key]

    def figures(self, right: np.ndarray) -> dict[str, Any]:
        """Accuracy of all questions with its interval, and of each kind of question."""
        kinds = np.array([question.kind for _, question in self.encoded.items])
        return {
            "accuracy": asdict(self.resampler.estimate(right)),
            "kinds": {kind: float(right[kinds == kind].mean()) for kind in KINDS if (kinds == kind).any()},
        }

    def against(self, right: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
        """Difference from the reference, paired by question, and whether it is more than chance."""
        difference = self.resampler.estimate(right - reference)
        return {"difference": asdict(difference), "verdict": verdict(difference)}


class Runner:
    """Loads both halves of a model once and runs a plan. Answers that the same code gave before come from the cache."""

    def __init__(self, model: str, folder: Path) -> None:
        self.encoder: VisualEncoder = load_encoder(model)
        self.decoder: LanguageDecoder = load_decoder(model)
        self.folder = folder / "cache" / f"{self.encoder.fingerprint[:12]}-{path_digest()}"

    def run(self, plan: Plan, report: Callable[[int], object]) -> dict[str, Any]:
        """The figures of each set. Calls `report` with the number of new answers or newly encoded pictures."""
        return {name: self._set(plan, name, limit, report) for name, limit in plan.sets.items()}

    def encoded(self, name: str, limit: int, report: Callable[[int], object] = lambda done: None) -> EncodedSet:
        """The first `limit` questions of a set with their encoded pictures."""
        items = questions(name, limit)
        return encode_set(self.encoder, items, self.folder / f"{name}-{limit}.safetensors", report)

    def _set(self, plan: Plan, name: str, limit: int, report: Callable[[int], object]) -> dict[str, Any]:
        encoded = self.encoded(name, limit, report)
        folder = self.folder / f"{name}-{limit}"

        def answer(config: MethodConfig, progress: Callable[[int], object] = lambda done: None) -> Outcome:
            return cached_answers(
                folder, config, lambda: answer_questions(self.encoder, self.decoder, encoded, config, progress)
            )

        for config in plan.configs(name):
            counted = [0]

            def count(done: int, counted: list[int] = counted) -> None:
                counted[0] += done
                report(done)

            answer(config, count)
            report(limit - counted[0])  # answers from the cache count as done
        full = answer(MethodConfig(FULL, None))
        one_set = _Set(encoded, answer, Resampler(limit, plan.resamples), full)
        result = {
            "questions": limit,
            "full": one_set.figures(one_set.correct(MethodConfig(FULL, None))),
            "rows": [_row(one_set, plan, method, k) for method in plan.methods for k in plan.budgets],
            "focus": [_focus(one_set, k) for k in plan.budgets],
        }
        if plan.ablate and name == next(iter(plan.sets)):
            result["ablations"] = _ablations(one_set, plan.budgets)
            result["auto"] = [_auto(one_set, label, budget) for label, budget in AUTO.items()]
            result["milliseconds"] = selection_times(encoded.samples, plan.methods, plan.budgets)
        return result


def _row(one_set: _Set, plan: Plan, method: str, k: int) -> dict[str, Any]:
    configs = [MethodConfig(method, Budget(tokens=k), options) for options in seeds_of(method, plan.seeds)]
    right = np.mean([one_set.correct(config) for config in configs], axis=0)
    same = [
        [a == b for a, b in zip(one_set.answer(config).answers, one_set.full.answers, strict=True)]
        for config in configs
    ]
    agreement = one_set.resampler.estimate(np.mean(same, axis=0))
    row = {
        "method": method,
        "budget": k,
        "seeds": len(configs),
        **one_set.figures(right),
        "agreement": asdict(agreement),
    }
    return row | one_set.against(right, one_set.correct(MethodConfig(REFERENCE, Budget(tokens=k))))


def _ablations(one_set: _Set, budgets: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for group, labels in ABLATIONS.items():
        for label, options in labels.items():
            for k in budgets:
                right = one_set.correct(MethodConfig(REFERENCE, Budget(tokens=k), options))
                row = {"group": group, "label": label, "budget": k, **one_set.figures(right)}
                rows.append(row | one_set.against(right, one_set.correct(MethodConfig(REFERENCE, Budget(tokens=k)))))
    return rows


def _auto(one_set: _Set, label: str, budget: Budget) -> dict[str, Any]:
    """An automatic budget against the fixed budget of equal mean.

    The mean lies between two whole numbers of tokens, so the fixed accuracy is interpolated between those two budgets.
    """
    config = MethodConfig(REFERENCE, budget)
    kept = np.array(one_set.answer(config).kept)
    mean = float(kept.mean())
    below, above = (one_set.correct(MethodConfig(REFERENCE, Budget(tokens=k))) for k in (floor(mean), ceil(mean)))
    fixed = below + (mean - floor(mean)) * (above - below)
    spread = {"least": int(kept.min()), "most": int(kept.max()), "mean": mean}
    figures = one_set.figures(one_set.correct(config)) | one_set.against(one_set.correct(config), fixed)
    return {
        "label": label,
        "tokens": spread,
        "fixed": asdict(one_set.resampler.estimate(fixed)),
        **figures,
    }


def _focus(one_set: _Set, k: int) -> dict[str, Any]:
    """K_F of Focus before the clamp (mean and quantiles), and the share of questions where it exceeds the budget."""
    focus_tokens = np.array(one_set.answer(MethodConfig(REFERENCE, Budget(tokens=k))).focus_wanted)
    kinds = np.array([question.kind for _, question in one_set.encoded.items])
    return {
        "budget": k,
        "mean": float(focus_tokens.mean()),
        "quantiles": [float(q) for q in np.quantile(focus_tokens, [0.1, 0.5, 0.9])],
        "clamped": float((focus_tokens > k).mean()),
        "clamped_by_kind": {
            kind: float((focus_tokens[kinds == kind] > k).mean()) for kind in KINDS if (kinds == kind).any()
        },
    }
