"""Secrets on a command line, which every user of the machine sees in `ps`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

__all__ = ["hide", "without"]


def hide(variables: Mapping[str, str]) -> None:
    """Moves the values of options from the command line of this process to its environment, which its owner alone sees.

    `variables` has the variable of each option, which the process must read too. The process then starts again in
    place: it keeps its id, its files and its signals. Without such an option nothing happens.
    """
    arguments, found = without(sys.argv[1:], variables)
    if not found or os.name != "posix":  # elsewhere a process that starts again is another one
        return
    count = len(sys.argv) - 1
    if sys.orig_argv[-count:] != sys.argv[1:]:  # somebody else's program calls this one
        return
    interpreter = sys.orig_argv[1:-count]  # such as -m and the name of a module
    os.execve(sys.executable, [sys.executable, *interpreter, *arguments], os.environ | found)


def without(arguments: list[str], variables: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The arguments but these options, and the value of each by its variable. Of an option that comes twice the values
    are joined by a comma, as in a list."""
    remaining: list[str] = []
    values: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if argument == "--":
            remaining += [argument, *rest]
        elif option not in variables:
            remaining.append(argument)
        elif (found := value if equals else next(rest, None)) is None:
            remaining.append(argument)  # an option without its value is for the parser to refuse
        else:
            values.setdefault(variables[option], []).append(found)
    return remaining, {name: ",".join(texts) for name, texts in values.items()}
