"""The ladder of budgets and methods that a calibration climbs down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsr.client.errors import InvalidRequestError

__all__ = ["ALL_TOKENS", "DEFAULT_BUDGETS", "DEFAULT_METHODS", "Candidate", "ladder"]

DEFAULT_BUDGETS = "0.5,0.33,0.22,0.11,0.055"  # for 576 tokens: 288, 190, 127, 63 and 32
DEFAULT_METHODS = "fsr,cdpruner"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method with its options and a budget: a number of tokens (int) or a share of them (float)."""

    budget: int | float
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "all tokens" if self.method is None else f"{self.method} {self.budget}"


#: Keeps every token, whatever the gateway's policy says.
ALL_TOKENS = Candidate(budget=1.0)


def ladder(budgets: str, methods: str, options: Mapping[str, Any]) -> list[list[Candidate]]:
    """The candidates of each method, the largest budget first.

    Raises InvalidRequestError for what is no list of budgets that can be ordered, or no list of methods.
    """
    values = sorted({_budget(text) for text in _parts("--budgets", budgets)}, reverse=True)
    if len({type(value) for value in values}) > 1:
        raise InvalidRequestError(f"--budgets: {budgets!r} mixes tokens and shares, which have no order; use one kind")
    names = list(dict.fromkeys(_parts("--methods", methods)))
    if options and len(names) > 1:
        raise InvalidRequestError("--option: belongs to one method; give a single one with --methods")
    return [[Candidate(budget=value, method=name, options=options) for value in values] for name in names]


def _parts(option: str, text: str) -> Sequence[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidRequestError(f"{option}: {text!r} has an empty place; write values with commas between")
    return parts


def _budget(text: str) -> int | float:
    ways = "write tokens (64,32,16) or shares of them below 1 (0.33,0.11)"
    try:
        value = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError as error:
        reason = "has no place in a ladder" if text == "auto" else "is no budget"
        raise InvalidRequestError(f"--budgets: {text!r} {reason}; {ways}") from error
    if not (0 < value < 1 if isinstance(value, float) else 1 <= value < 2**31):
        raise InvalidRequestError(f"--budgets: {text} is out of range; {ways}")
    return value
