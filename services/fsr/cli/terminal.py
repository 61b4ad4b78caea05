"""How commands print: lines as they are, and a failure as one line on standard error with a status that is not zero."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

__all__ = ["Commands", "fail", "plain"]


def fail(message: object, status: int = 1) -> NoReturn:
    """Prints the error and ends the command."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(status)


def plain(console: Console) -> Callable[[str], None]:
    """Prints lines on a console as they are, such as those of a log."""

    def print_line(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return print_line


class Commands(TyperGroup):
    """Reports wrong arguments and options in one line too; Typer itself prints a box."""

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
        # Some versions of Typer bundle Click, so its classes cannot be named here. A request for help is no error.
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        message = " ".join(error.format_message().split()).rstrip(".")
        context = getattr(error, "ctx", None)
        fail(f"{message}; see {context.command_path if context else 'fsr'} --help", getattr(error, "exit_code", 2))
