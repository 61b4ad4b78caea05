"""`fsr evaluate`: starts the core's evaluation. The client alone installs neither PyTorch nor matplotlib."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

from fsr.cli.terminal import fail

__all__ = ["PASS_THROUGH", "evaluate"]

_NEEDS = ("torch", "transformers", "matplotlib")

#: The evaluation declares every option and prints its own help.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def evaluate(context: typer.Context) -> None:
    """Measure every method at every budget on the frozen test sets: tables, intervals, ablations, plots (--help).

    example: fsr evaluate --quick --out runs/quick
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        fail(f"{missing[0]} is missing; install what evaluate needs: pip install 'fsr-gateway[eval]'")
    # The evaluation takes over this process, so that signals reach it and no child process can be left behind.
    os.execv(sys.executable, [sys.executable, "-m", "fsr_core.evaluation", *context.args])
