"""Checks of values from callers: options of methods, budgets."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["check_choice", "check_number", "check_sign", "check_whole"]


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError that names the option, unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {_short(value)}")


def check_sign(name: str, value: Any) -> None:
    """Raises ValueError that names the option, unless `value` is "+" or "-"."""
    check_choice(name, value, ("+", "-"))


def check_number(name: str, value: Any, low: float, high: float, hint: str = "") -> None:
    """Raises ValueError that names the option, unless `value` is a finite number within low..high."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            if low <= float(value) <= high:  # false for NaN
                return
        except OverflowError:  # a whole number that no float can hold
            pass
    raise ValueError(f"{name}: expected a number within {low:g}..{high:g}, got {_short(value)}{hint and '; ' + hint}")


def check_whole(name: str, value: Any, low: int, hint: str = "") -> None:
    """Raises ValueError that names the option, unless `value` is a whole number >= low.

    8.0 is a whole number too, because JSON has only one kind of number.
    """
    if isinstance(value, Integral | float) and not isinstance(value, bool):
        whole = isinstance(value, Integral) or value.is_integer()
        if whole and low <= int(value) < 2**31:
            return
    raise ValueError(f"{name}: expected a whole number >= {low}, got {_short(value)}{hint and '; ' + hint}")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, Integral) or abs(int(value)) < 10**30 else "a number of many digits"
    return text if len(text) <= 60 else text[:60] + "..."
