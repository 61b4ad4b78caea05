"""Runs a plan: every configuration on every set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsr_core.backbones import fingerprint, load_decoder, load_encoder, resolve
from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.budget import Budget
from fsr_core.evaluation.answers import Outcome, answer_questions, cached_answers
from fsr_core.evaluation.code_digests import path_digest
from fsr_core.evaluation.figures import SetFigures, pooled
from fsr_core.evaluation.method_configs import ABLATIONS, AUTO_BUDGETS, FULL, REFERENCE, MethodConfig, runs
from fsr_core.evaluation.question_sets import EncodedSet, encode_set, questions, set_size
from fsr_core.evaluation.statistics import RESAMPLES, Resampler
from fsr_core.evaluation.timing import ROUNDS, selection_times

__all__ = ["Plan", "Runner", "checkpoint_digest"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    sets       by name, how many of their first questions are asked
    methods    names of methods, the reference first
    budgets    kept tokens
    seeds      how many seeds of random selection
    ablate     whether the first set also gets ablations, automatic budgets and times
    resamples  of the bootstrap

    Raises ValueError for a limit outside its set, for no budget or seed, and for an unknown method.
    """

    sets: Mapping[str, int]
    methods: Sequence[str]
    budgets: Sequence[int]
    seeds: int = 3
    ablate: bool = True
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        for name, limit in self.sets.items():
            if not 1 <= limit <= set_size(name):
                raise ValueError(f"limit: {limit} is outside the set {name!r}; give 1 to {set_size(name)}")
        if self.seeds < 1 or not self.budgets or min(self.budgets) < 1:
            raise ValueError("seeds, budgets: give at least one seed, and budgets of at least one token")
        for method in self.methods:
            MethodConfig(method, None).compressor()

    def ablates(self, name: str) -> bool:
        """Whether a set also gets ablations, automatic budgets and times."""
        return self.ablate and name == next(iter(self.sets))

    def configs(self, name: str) -> list[MethodConfig]:
        """Every configuration of a set once, in the order in which they run.

        The fixed budgets that automatic ones are compared with are not among them: they are known only afterwards.
        """
        configs = [MethodConfig(FULL, None), *(MethodConfig(REFERENCE, Budget(tokens=k)) for k in self.budgets)]
        for run in runs(self.methods, self.seeds):
            configs += [config for k in self.budgets for config in run.configs(Budget(tokens=k))]
        if self.ablates(name):
            for group in ABLATIONS.values():
                for options in group.values():
                    configs += [MethodConfig(REFERENCE, Budget(tokens=k), options) for k in self.budgets]
            configs += [MethodConfig(REFERENCE, budget) for budget in AUTO_BUDGETS.values()]
        return list({config.key: config for config in configs}.values())


def checkpoint_digest(model: str) -> str:
    """By which stored answers belong to a checkpoint: its fingerprint, and that of the CLIP beside it, if it has one.

    The services' fingerprint leaves CLIP out, because a decoder may hold the language model alone.
    """
    folder = resolve(model)
    parts = (folder, folder / "clip") if (folder / "clip").is_dir() else (folder,)
    return "-".join(fingerprint(part)[:12] for part in parts)


class Runner:
    """Loads a model's two halves once and runs plans. Answers that the same code gave before are read back."""

    def __init__(self, model: str, folder: Path) -> None:
        self.encoder: VisualEncoder = load_encoder(model)
        self.decoder: LanguageDecoder = load_decoder(model)
        self.folder = folder / "cache" / f"{checkpoint_digest(model)}-{path_digest()}"

    def run(self, plan: Plan, progress: Callable[[int], object]) -> dict[str, Any]:
        """Figures by set, and of all held-out sets together. `progress` is called with numbers of answered questions
        and encoded pictures."""
        results, held_out = {}, []
        for name, limit in plan.sets.items():
            results[name], figures = self._run_set(plan, name, limit, progress)
            held_out += [figures] if name != "validation" else []
        if len(held_out) < 2:
            return {"sets": results}
        compared = runs(plan.methods, plan.seeds)
        return {"sets": results, "pooled": pooled(held_out, compared, plan.budgets, plan.resamples)}

    def encoded(self, name: str, limit: int, progress: Callable[[int], object] = lambda done: None) -> EncodedSet:
        """The first `limit` questions of a set, encoded; read back if they were encoded before."""
        return encode_set(self.encoder, questions(name, limit), self.folder / f"{name}-{limit}.safetensors", progress)

    def _run_set(
        self, plan: Plan, name: str, limit: int, progress: Callable[[int], object]
    ) -> tuple[dict[str, Any], SetFigures]:
        encoded, folder = self.encoded(name, limit, progress), self.folder / f"{name}-{limit}"

        def outcome_of(config: MethodConfig, progress: Callable[[int], object] = lambda done: None) -> Outcome:
            return cached_answers(
                folder, config, lambda: answer_questions(self.encoder, self.decoder, encoded, config, progress)
            )

        for config in plan.configs(name):
            batches: list[int] = []

            def count(done: int, batches: list[int] = batches) -> None:
                batches.append(done)
                progress(done)

            outcome_of(config, count)
            progress(limit - sum(batches))  # answers that are read back count as done
        figures = SetFigures(encoded, outcome_of, Resampler(limit, plan.resamples))
        compared = runs(plan.methods, plan.seeds)
        results = {
            "questions": limit,
            "full": figures.full(),
            "rows": figures.rows(compared, plan.budgets),
            "focus": [figures.focus(k) for k in plan.budgets],
        }
        if plan.ablates(name):
            results["ablations"] = figures.ablations(plan.budgets)
            results["auto"] = figures.auto_budgets()
            results["milliseconds"] = [
                {"batch": batch, "times": selection_times(encoded.samples, compared, plan.budgets, batch)}
                for batch in ROUNDS
            ]
        return results, figures
