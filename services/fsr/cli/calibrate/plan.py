"""From the options of `fsr calibrate` to a plan that can be carried out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import floor
from pathlib import Path

from fsr.cli.calibrate.evidence import Evidence, fewest_questions
from fsr.cli.calibrate.ladder import Candidate
from fsr.cli.calibrate.procedure import Measure, Plan
from fsr.cli.calibrate.questions import Question
from fsr.cli.calibrate.scoring import Scorer
from fsr.client.errors import InvalidRequestError

__all__ = ["check_output", "make_plan"]


def make_plan(
    questions: Sequence[Question],
    methods: Sequence[Sequence[Candidate]],
    *,
    target: float,
    confidence: float,
    measure: Measure | None,
    scorer: Scorer,
    clients: int,
    seed: int,
) -> Plan:
    """The plan, with the questions in the random order of the seed.

    Raises InvalidRequestError for a target or confidence out of range, for a measure that needs answers, and where the
    questions are too few to show the target.
    """
    if not 0 < target <= 1:  # true of NaN
        raise InvalidRequestError(f"--target: {target:g} is out of range; give a share between 0 and 1, such as 0.98")
    if target == 1:
        raise InvalidRequestError("--target: no number of questions shows that all others agree too; take 0.99")
    if not 0.5 <= confidence < 1:
        raise InvalidRequestError(f"--confidence: {confidence:g} is out of range; give 0.5 or more, such as 0.95")
    answers = bool(questions[0].answers)  # all of them have some, or none has
    if not answers and measure not in (None, "agreement"):
        raise InvalidRequestError(f"--measure: {measure} needs the right answers; write an answer into every line")
    plan = Plan(
        questions=random.Random(seed).sample(questions, len(questions)),
        methods=methods,
        target=target,
        confidence=confidence,
        measure=measure or ("accuracy" if answers else "agreement"),
        scorer=scorer,
        clients=clients,
    )
    _check_enough(plan)
    return plan


def _check_enough(plan: Plan) -> None:
    """Raises InvalidRequestError if not even perfect scores on all questions could show the target."""
    given, alpha = len(plan.questions), plan.alpha_of_method
    needed = fewest_questions(plan.target, alpha)
    if given >= needed:
        return
    perfect = Evidence()
    for _ in range(given):
        perfect.add(1.0)
    possible = floor(1000 * perfect.interval(alpha)[0]) / 1000
    methods = f"{len(plan.methods)} methods" if len(plan.methods) > 1 else "one method"
    raise InvalidRequestError(
        f"--target: {plan.target:g} takes at least {needed:.0f} questions, even if compression changes no answer "
        f"({methods}, {plan.confidence:.0%} confidence), and {given} are given; give more questions, fewer --methods, "
        f"or a target of at most {possible:g}"
    )


def check_output(folder: Path) -> None:
    """Makes the folder of the results. Raises InvalidRequestError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.jsonl").touch()
    except OSError as error:
        raise InvalidRequestError(f"--out: cannot write into {folder} ({error.strerror}); name a folder") from error
