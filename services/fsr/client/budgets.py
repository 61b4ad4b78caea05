"""Budgets as callers write them, to the message of a request."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Literal, get_args

from fsr.client.errors import InvalidRequestError
from fsr.v1 import types_pb2

__all__ = ["Budget", "Spread", "budget_of"]

Budget = int | float | Literal["auto"]
Spread = Literal["even", "free"]
_WAYS = "a number of tokens (64), a share of them (0.11) or 'auto'"


def budget_of(budget: Budget | None, spread: Spread = "even") -> types_pb2.Budget:
    """An int is a number of tokens, a float a share of them, "auto" as many as the evidence asks for. None is open: the
    gateway's policy chooses.

    `spread` divides it among the tiles of a picture or the frames of a video: evenly, or as the evidence asks ("free").
    Raises InvalidRequestError naming the argument.
    """
    if spread not in get_args(Spread):
        raise InvalidRequestError(f"spread: {spread!r} is unknown; use even or free")
    message = _message(budget)
    message.spread = types_pb2.Spread.Value(f"SPREAD_{spread.upper()}")
    return message


def _message(budget: Any) -> types_pb2.Budget:
    if budget is None:
        return types_pb2.Budget()
    if isinstance(budget, str) and budget == "auto":
        return types_pb2.Budget(auto=types_pb2.AutoBudget())
    if isinstance(budget, bool) or not isinstance(budget, Real):  # Real and Integral include NumPy's numbers
        raise InvalidRequestError(f"budget: expected {_WAYS}, got {budget!r}")
    if not isinstance(budget, Integral):
        share = float(budget)
        if not 0 < share <= 1:  # true of NaN
            raise InvalidRequestError(f"budget: {budget} is no share of the tokens; give {_WAYS}")
        return types_pb2.Budget(keep_ratio=share)
    tokens = int(budget)
    if not 1 <= tokens < 2**31:
        raise InvalidRequestError(f"budget: {budget} tokens is out of range; keep at least 1, or all with 1.0")
    return types_pb2.Budget(tokens=tokens)
