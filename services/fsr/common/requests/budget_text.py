"""A budget as people write and read it: `64`, `0.11`, `auto`, or `auto:16..128`, which is automatic within bounds."""

from __future__ import annotations

from fsr.v1 import types_pb2

__all__ = ["budget_text", "parse_budget_text"]

_WAYS = "write tokens (64), a share (0.11), auto, or auto within bounds (auto:16..128)"
_MOST = 2**31 - 1  # of int32


def parse_budget_text(text: str) -> types_pb2.Budget:
    """The budget that a text means. Raises ValueError, which quotes the text and says what to write."""
    kind, colon, bounds = text.strip().partition(":")
    try:
        if kind == "auto":
            return types_pb2.Budget(auto=_auto(bounds) if colon else types_pb2.AutoBudget())
        if "." in text or "e" in text.lower():
            share = float(text)
            if 0 < share <= 1:
                return types_pb2.Budget(keep_ratio=share)
        elif 1 <= int(text) <= _MOST:
            return types_pb2.Budget(tokens=int(text))
    except ValueError:
        pass
    raise ValueError(f"{text!r} is no budget; {_WAYS}")


def _auto(bounds: str) -> types_pb2.AutoBudget:
    """`16..128`; either number may be left out. Raises ValueError."""
    low, dots, high = bounds.partition("..")
    least, most = int(low or 1), int(high or _MOST)
    if not dots or not (low or high) or not 1 <= least <= most <= _MOST:
        raise ValueError
    return types_pb2.AutoBudget(min_tokens=least if low else 0, max_tokens=most if high else 0)


def budget_text(budget: types_pb2.Budget) -> str:
    """The text of a budget, without spread and radius; empty if it is open."""
    match budget.WhichOneof("kind"):
        case "tokens":
            return str(budget.tokens)
        case "keep_ratio":
            return repr(budget.keep_ratio)  # 1.0, not 1, which would be one token
        case "auto":
            low, high = budget.auto.min_tokens, budget.auto.max_tokens
            return f"auto:{low or ''}..{high or ''}" if low or high else "auto"
        case _:
            return ""
