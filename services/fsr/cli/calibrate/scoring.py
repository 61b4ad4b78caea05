"""How well an answer fits a reference: 0 to 1."""

from __future__ import annotations

import json
import re
import shlex
import string
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fsr.client.errors import InvalidRequestError

__all__ = ["SCORES", "Pair", "Scorer", "same_text"]

SCORES = ("exact", "f1")
_ARTICLES = ("a", "an", "the")
_AROUND = " .,;:!?\"'`"  # what may stand around an answer; not the sign of a number
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Pair:
    """An answer to a question, and the references of which it needs to fit one."""

    question: str
    answer: str
    references: tuple[str, ...]


class Scorer:
    """`exact`, `f1`, or a command of the user's.

    exact    1 if both are equal but for case, white space and punctuation at their ends
    f1       the harmonic mean of precision and recall of words, without case, punctuation and articles, as for SQuAD
             (Rajpurkar et al. 2016, arXiv 1606.05250)
    command  reads one JSON object a line, {"question", "answer", "references"}, and prints one number a line
    """

    def __init__(self, score: str, command: str | None) -> None:
        """Raises InvalidRequestError for an unknown score, or for a command that cannot be split into words."""
        if score not in SCORES:
            raise InvalidRequestError(f"--score: {score!r} is unknown; use {' or '.join(SCORES)}, or --score-command")
        self._score = _exact if score == "exact" else _f1
        self._command = command
        try:
            self._words = shlex.split(command) if command is not None else []
        except ValueError as error:
            raise InvalidRequestError(f"--score-command: {command!r} is no command line ({error})") from error
        if command is not None and not self._words:
            raise InvalidRequestError("--score-command: is empty; write a command, such as 'python score.py'")
        self._known: dict[Pair, float] = {}

    @property
    def name(self) -> str:
        return self._command or self._score.__name__.strip("_")

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        """A score for each pair. Raises InvalidRequestError if the command fails."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if not self._words:
            computed = [max(self._score(pair.answer, one) for one in pair.references) for pair in new]
        else:
            computed = self._by_command(new) if new else []
        self._known |= dict(zip(new, computed, strict=True))
        return [self._known[pair] for pair in pairs]

    def _by_command(self, pairs: Sequence[Pair]) -> list[float]:
        lines = [json.dumps({"question": p.question, "answer": p.answer, "references": p.references}) for p in pairs]
        try:
            done = subprocess.run(
                self._words, input="\n".join(lines) + "\n", text=True, encoding="utf-8", capture_output=True
            )
        except (OSError, ValueError) as error:  # ValueError: its output is no text
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequestError(f"--score-command: cannot run {self._command!r} ({reason})") from error
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise InvalidRequestError(f"--score-command: {self._command!r} ended with {done.returncode}: {said[:300]}")
        printed = done.stdout.split()
        if len(printed) != len(pairs):
            counts = f"printed {len(printed)} numbers for {len(pairs)} answers"
            raise InvalidRequestError(f"--score-command: {self._command!r} {counts}; print one number for each line")
        return [self._number(text) for text in printed]

    def _number(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:  # true of NaN
            raise InvalidRequestError(f"--score-command: printed {text[:60]!r}, which is no number from 0 to 1")
        return number


def same_text(answer: str, other: str) -> bool:
    """Whether both are equal but for case, white space and punctuation at their ends."""
    return _bare(answer) == _bare(other)


def _exact(answer: str, reference: str) -> float:
    return float(same_text(answer, reference))


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(_AROUND)


def _f1(answer: str, reference: str) -> float:
    ours, theirs = _words(answer), _words(reference)
    if not ours or not theirs:  # nothing but punctuation and articles
        return _exact(answer, reference)
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total())


def _words(text: str) -> Counter[str]:
    words = re.split(r"\s+", text.casefold().translate(_NO_PUNCTUATION).strip())
    return Counter(word for word in words if word and word not in _ARTICLES)
