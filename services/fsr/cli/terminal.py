"""How commands speak of failure: one line on standard error, and a status that is not zero."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

__all__ = ["Commands", "fail"]


def fail(message: object, status: int = 1) -> NoReturn:
    """Ends the command."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(status)


class Commands(TyperGroup):
    """Says in one line too what is wrong with arguments and options, where Typer prints a box."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _in_one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_line():
            return super().invoke(ctx)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Typer brings a Click of its own or takes the one installed, by its version; and help is no error.
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        said = " ".join(error.format_message().split()).rstrip(".")
        context = getattr(error, "ctx", None)
        fail(f"{said}; see {context.command_path if context else 'fsr'} --help", getattr(error, "exit_code", 2))
