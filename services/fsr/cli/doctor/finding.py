"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level", "finding"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """`subject` in a word or two; `text` says what was found and, unless all is well, what to do."""

    level: Level
    subject: str
    text: str


def finding(subject: str, well: str, error: str | None = None, warning: str | None = None) -> Finding:
    """An error if there is one, else a warning if there is one, else that all is well."""
    if error is not None:
        return Finding("error", subject, error)
    return Finding("ok", subject, well) if warning is None else Finding("warning", subject, warning)
