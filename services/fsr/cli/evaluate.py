"""`fsr evaluate`: hands over to a tool of the core; the client alone installs neither PyTorch nor matplotlib."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

__all__ = ["add_to"]

_NEEDS = ("torch", "transformers", "matplotlib")


def add_to(app: typer.Typer) -> None:
    """Adds the command to the `fsr` command."""
    # Every option is the tool's own; it prints its help itself.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=settings)(evaluate)


def evaluate(context: typer.Context) -> None:
    """Measure every method at every budget on the frozen test sets: tables, intervals, ablations, plots (--help).

    example: fsr evaluate --quick --out runs/quick
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        print(
            f"error: {missing[0]} is missing; install what it needs: pip install 'fsr-gateway[eval]'", file=sys.stderr
        )
        raise typer.Exit(1)
    # The tool takes this process over, so that signals reach it and nothing is left behind when it is ended.
    os.execv(sys.executable, [sys.executable, "-m", "fsr_core.evaluation", *context.args])
