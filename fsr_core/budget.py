"""How many tokens a sample may keep: a number, a share, or as many as the evidence needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from typing import Literal

from fsr_core.checks import check_number, check_whole

__all__ = ["Budget", "BudgetLike", "Limits"]


@dataclass(frozen=True)
class Limits:
    """A budget for a sample of known size: keep `minimum`..`maximum` tokens.

    From `minimum` on, Scan may stop once no token is farther than `radius` (cosine distance) from the kept ones.
    """

    minimum: int
    maximum: int
    radius: float = -inf


_RADIUS = 0.3
_WAYS = "a number of tokens (64), a share of them (0.11), 'auto' or a Budget"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Exactly one of `tokens`, `keep_ratio` and `auto`.

    tokens      K; a budget of N or more keeps every token unchanged
    keep_ratio  in (0, 1]: K = N * keep_ratio, rounded half up, at least 1
    auto        Focus stops at `rho` of the evidence, Scan once the covering radius is at most `radius`;
                both within min_tokens..max_tokens (max_tokens None: N)
    """

    tokens: int | None = None
    keep_ratio: float | None = None
    auto: bool = False
    min_tokens: int = 1
    max_tokens: int | None = None
    radius: float = _RADIUS

    def __post_init__(self) -> None:
        if (self.tokens is not None) + (self.keep_ratio is not None) + bool(self.auto) != 1:
            raise ValueError("budget: give exactly one of tokens, keep_ratio and auto")
        if self.tokens is not None:
            check_whole("budget.tokens", self.tokens, 1, "ask for at least one token")
        if self.keep_ratio is not None:
            check_number("budget.keep_ratio", self.keep_ratio, 1e-9, 1, "a share of the tokens, such as 0.11")
        if not self.auto and (self.min_tokens, self.max_tokens, self.radius) != (1, None, _RADIUS):
            raise ValueError(
                "budget: min_tokens, max_tokens and radius bound an automatic budget; set auto or drop them"
            )
        check_whole("budget.min_tokens", self.min_tokens, 1, "ask for at least one token")
        if self.max_tokens is not None:
            check_whole("budget.max_tokens", self.max_tokens, 1, "ask for at least one token")
            if self.max_tokens < self.min_tokens:
                raise ValueError(
                    f"budget.max_tokens: {self.max_tokens} is below min_tokens {self.min_tokens}; raise it"
                )
        check_number("budget.radius", self.radius, 0, 2, "a cosine distance, such as 0.3")

    @classmethod
    def of(cls, budget: BudgetLike) -> Budget:
        """The budget of a plain value, as the SDK takes it: an int is tokens, a float a share, "auto" is automatic.

        Raises:
            ValueError: it is anything else, or out of range.
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str) and budget == "auto":
            return cls(auto=True)
        if isinstance(budget, bool) or not isinstance(budget, Real):  # NumPy's numbers are Real or Integral
            raise ValueError(f"budget: expected {_WAYS}, got {budget!r}")
        if isinstance(budget, Integral):
            return cls(tokens=int(budget))
        if not 0 < budget <= 1:
            raise ValueError(f"budget: {budget} is no share of the tokens; give {_WAYS}")
        return cls(keep_ratio=float(budget))

    def limits(self, n: int) -> Limits:
        """Limits for a sample of `n` tokens, never above `n`."""
        if self.auto:
            maximum = n if self.max_tokens is None else min(n, int(self.max_tokens))
            return Limits(min(int(self.min_tokens), maximum), maximum, self.radius)
        k = int(self.tokens) if self.tokens is not None else max(1, int(n * (self.keep_ratio or 0) + 0.5))
        return Limits(min(k, n), min(k, n))


#: What every call that takes a budget accepts; see `Budget.of`.
BudgetLike = int | float | Literal["auto"] | Budget
