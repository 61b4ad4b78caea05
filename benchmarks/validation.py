"""Right answers on the validation split, in two halves: one to choose by, and one that has no influence on a choice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fsr_core import Budget, VisualTokens
from fsr_core.evaluation.answers import answer_questions, cached_answers
from fsr_core.evaluation.method_configs import MethodConfig, Run
from fsr_core.evaluation.question_sets import EncodedSet, set_size
from fsr_core.evaluation.runner import Runner
from fsr_core.tiny.questions import is_correct

__all__ = ["HALF", "Validation"]

HALF = set_size("validation") // 2


class Validation:
    """The first `limit` questions of each half, asked of a model. Pictures and answers are stored under `out`.

    model  `fsr-tiny`, or the folder of a checkpoint that `fsr evaluate --model` takes
    """

    def __init__(self, model: str, limit: int, out: Path) -> None:
        self._runner, self._limit = Runner(model, out), limit
        self._bar = tqdm(unit="answer", file=sys.stderr, mininterval=1)
        every = self._runner.encoded("validation", 2 * limit, self._bar.update)
        self._halves = []
        for start in (0, limit):
            part = slice(start, start + limit)
            self._halves.append(EncodedSet(every.items[part], every.images[part], every.samples[part]))

    def samples(self) -> list[VisualTokens]:
        """Of the half to choose by."""
        return list(self._halves[0].samples)

    def right(self, half: int) -> Callable[[Run, int], np.ndarray]:
        """A function that gives 1.0 for each right answer of a run at a budget: [questions], or [seeds, questions]."""
        return partial(self._right, half)

    def _right(self, half: int, run: Run, budget: int) -> np.ndarray:
        rights = [self._of_config(half, config) for config in run.configs(Budget(tokens=budget))]
        return np.stack(rights) if len(rights) > 1 else rights[0]

    def _of_config(self, half: int, config: MethodConfig) -> np.ndarray:
        encoded, start = self._halves[half], half * self._limit
        folder = self._runner.folder / f"validation-{start}-{start + self._limit}"
        work = partial(answer_questions, self._runner.encoder, self._runner.decoder, encoded, config, self._bar.update)
        answers = zip(encoded.items, cached_answers(folder, config, work).answers, strict=True)
        return np.array([float(is_correct(question, text)) for (_, question), text in answers])
