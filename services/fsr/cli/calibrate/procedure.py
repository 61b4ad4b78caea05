"""The sequential procedure: which budget is the cheapest that is shown to keep the target, with as few questions as
show it.

All questions come in one random order. Of each method the budgets are tested from the largest down, each on the
questions from the first on. A test ends once "kept" is shown (the method's next budget follows), once the opposite is
shown, or once even perfect scores on all remaining questions could not show "kept"; then the method has ended.

Why the error of the whole ladder is at most alpha = 1 - confidence: within one method, a budget is tested only after
all larger ones were shown to keep the target (fixed-sequence testing: Maurer, Hothorn and Lehmacher 1995; for choosing
parameters of models: Angelopoulos et al., "Learn then Test", arXiv 2110.01052). Whoever shows something false of a
method has also shown it of the first budget in its sequence that does not keep the target, and that budget has one
test. Each of M methods gets alpha / M (Bonferroni). Each test may be looked at after every question (`evidence.py`), so
stopping early, and going on after a stop, cost nothing. Tests of "not kept" only save questions: they show nothing.

Cheapest means fewest visual tokens; of methods with equally many, the one that was named first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import nan
from statistics import fmean
from typing import Literal

from fsr.cli.calibrate.answering import Answering
from fsr.cli.calibrate.evidence import Evidence
from fsr.cli.calibrate.ladder import ALL_TOKENS, Candidate
from fsr.cli.calibrate.questions import Question
from fsr.cli.calibrate.run_file import Reply, RunFile
from fsr.cli.calibrate.scoring import Pair, Scorer, same_text
from fsr.client.errors import ClientError

__all__ = ["Change", "Measure", "Outcome", "Plan", "Procedure", "Result", "Verdict"]

Measure = Literal["agreement", "accuracy", "relative-accuracy"]


class Verdict(StrEnum):
    KEPT = "keeps the target"
    BELOW = "is below the target"
    OPEN = "is not decided by these questions"
    UNTESTED = "was not tested"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be found out. `questions` are in the order in which they are asked, `clients` of them at a time.

    measure  agreement          the score of an answer against the one with all tokens
             accuracy           its score against the right answers
             relative-accuracy  the same, as a share of what all tokens reach
    """

    questions: Sequence[Question]
    methods: Sequence[Sequence[Candidate]]  # budgets of each, largest first
    target: float
    confidence: float
    measure: Measure
    scorer: Scorer
    clients: int = 4

    @property
    def alpha_of_method(self) -> float:
        return (1 - self.confidence) / len(self.methods)


@dataclass(frozen=True)
class Change:
    """A question whose answer compression changed."""

    question: Question
    whole: str
    compressed: str


@dataclass(kw_only=True)
class Outcome:
    """What the questions said about a candidate. `kept` and `tokens` are visual tokens after and before."""

    candidate: Candidate
    evidence: Evidence
    verdict: Verdict = Verdict.UNTESTED
    kept: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def mean_kept(self) -> float:
        return fmean(self.kept) if self.kept else nan

    @property
    def mean_tokens(self) -> float:
        return fmean(self.tokens) if self.tokens else nan


@dataclass(frozen=True)
class Result:
    """The outcomes of each method, in the order of the plan, what all tokens reach, and the cheapest that is shown to
    keep the target; None if none is."""

    whole: Outcome
    methods: Sequence[Sequence[Outcome]]
    chosen: Outcome | None

    @property
    def tested(self) -> list[Outcome]:
        return [one for outcomes in self.methods for one in outcomes if one.verdict is not Verdict.UNTESTED]


class Procedure:
    """Runs a plan. Answers that the run file has are not asked again; others are stored as they come."""

    def __init__(
        self, plan: Plan, answering: Answering, stored: RunFile, progress: Callable[[Candidate, int], object]
    ) -> None:
        """`progress` is called with the number of questions that a candidate has answered."""
        self._plan, self._answering, self._stored, self._progress = plan, answering, stored, progress
        self._whole = Outcome(candidate=ALL_TOKENS, evidence=Evidence())

    async def run(self) -> Result:
        """Raises ClientError and OSError; what was answered until then is stored."""
        relative = self._plan.measure == "relative-accuracy"
        methods = [
            [Outcome(candidate=one, evidence=Evidence(relative)) for one in candidates]
            for candidates in self._plan.methods
        ]
        for outcomes in methods:
            for outcome in outcomes:
                await self._decide(outcome)
                if outcome.verdict is not Verdict.KEPT:
                    break
            else:
                break  # the smallest budget keeps the target: no other method can be cheaper
        kept = [(-rung, i) for i, outcomes in enumerate(methods) for rung, one in enumerate(outcomes) if _is_kept(one)]
        chosen = min(kept, default=None)
        return Result(self._whole, methods, methods[chosen[1]][-chosen[0]] if chosen else None)

    async def _decide(self, outcome: Outcome) -> None:
        questions, clients = self._plan.questions, self._plan.clients
        done = 0
        while (verdict := self._verdict(outcome.evidence, len(questions) - done)) is None:
            await self._ask(outcome, questions[done : done + clients])
            done += clients
            self._progress(outcome.candidate, min(done, len(questions)))
        outcome.verdict = verdict

    def _verdict(self, evidence: Evidence, remaining: int) -> Verdict | None:
        """None while more questions may decide it."""
        enough = 1 / self._plan.alpha_of_method
        if evidence.capital(self._plan.target) >= enough:
            return Verdict.KEPT
        if evidence.doubt(self._plan.target) >= 1 / (1 - self._plan.confidence):
            return Verdict.BELOW
        if evidence.capital(self._plan.target, max(0, remaining)) < enough:
            return Verdict.OPEN
        return None

    async def _ask(self, outcome: Outcome, questions: Sequence[Question]) -> None:
        """Asks a batch and adds the scores."""
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                asked = [
                    [group.create_task(self._reply(one, who)) for who in (ALL_TOKENS, outcome.candidate)]
                    for one in questions
                ]
        except* (ClientError, OSError) as failures:
            failed = failures.exceptions[0]
        if failed is not None:  # raised here, because what is raised above becomes a group
            raise failed
        replies = [(whole.result(), compressed.result()) for whole, compressed in asked]
        await self._score(outcome, questions, replies)

    async def _reply(self, question: Question, candidate: Candidate) -> Reply:
        reply = self._stored.get(question, candidate)
        if reply is None:
            reply = await self._answering.ask(question, candidate)
            self._stored.add(question, candidate, reply)
        return reply

    async def _score(
        self, outcome: Outcome, questions: Sequence[Question], replies: Sequence[tuple[Reply, Reply]]
    ) -> None:
        by_answers = self._plan.measure != "agreement"
        pairs = []
        for question, (whole, compressed) in zip(questions, replies, strict=True):
            references = question.answers if by_answers else (whole.text,)
            pairs += [Pair(question.text, whole.text, references), Pair(question.text, compressed.text, references)]
        scores = await asyncio.to_thread(self._plan.scorer.scores, pairs)  # a user's command may take long
        for i, (question, (whole, compressed)) in enumerate(zip(questions, replies, strict=True)):
            outcome.evidence.add(scores[2 * i + 1], scores[2 * i])
            outcome.kept.append(compressed.kept)
            outcome.tokens.append(compressed.tokens)
            if not same_text(compressed.text, whole.text):
                outcome.changes.append(Change(question, whole.text, compressed.text))
            if outcome.evidence.questions > self._whole.evidence.questions:  # no larger budget has come so far
                self._whole.evidence.add(scores[2 * i])
                self._whole.kept.append(whole.kept)
                self._whole.tokens.append(whole.tokens)


def _is_kept(outcome: Outcome) -> bool:
    return outcome.verdict is Verdict.KEPT
