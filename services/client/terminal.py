"""How commands speak of failure: one line on standard error, and a status that is not zero."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

__all__ = ["fail"]


def fail(message: object) -> NoReturn:
    """Ends the command."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(1)
