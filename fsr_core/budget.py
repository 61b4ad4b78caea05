"""How many tokens a sample may keep: a number, a share, or as many as the evidence asks for."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

__all__ = ["Budget", "Limits"]


@dataclass(frozen=True)
class Limits:
    """A budget for a sample of known size: keep `minimum`..`maximum`; Scan may stop once no token is farther than
    `radius` (cosine distance) from the kept ones."""

    minimum: int
    maximum: int
    radius: float = -inf


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}; ask for at least one token")


@dataclass(frozen=True)
class Budget:
    """Exactly one of `tokens`, `keep_ratio` and `auto`.

    tokens      K; a budget of N or more keeps every token unchanged
    keep_ratio  in (0, 1]: K = N * keep_ratio rounded half up, at least 1
    auto        Focus stops at `rho` of the evidence, Scan when the covering radius is at most `radius`,
                both within min_tokens..max_tokens (max_tokens None: N)
    """

    tokens: int | None = None
    keep_ratio: float | None = None
    auto: bool = False
    min_tokens: int = 1
    max_tokens: int | None = None
    radius: float = 0.3

    def __post_init__(self) -> None:
        if (self.tokens is not None) + (self.keep_ratio is not None) + bool(self.auto) != 1:
            raise ValueError("budget: give exactly one of tokens, keep_ratio and auto")
        if self.tokens is not None:
            _whole("budget.tokens", self.tokens)
        if self.keep_ratio is not None and not (
            isinstance(self.keep_ratio, float | int) and isfinite(self.keep_ratio) and 0 < self.keep_ratio <= 1
        ):
            raise ValueError(f"budget.keep_ratio: expected a share in (0, 1], got {self.keep_ratio!r}; try 0.11")
        _whole("budget.min_tokens", self.min_tokens)
        if self.max_tokens is not None:
            _whole("budget.max_tokens", self.max_tokens)
            if self.max_tokens < self.min_tokens:
                raise ValueError(
                    f"budget.max_tokens: {self.max_tokens} is below min_tokens {self.min_tokens}; raise it"
                )
        if not (isfinite(self.radius) and 0 <= self.radius <= 2):
            raise ValueError(f"budget.radius: expected a cosine distance in [0, 2], got {self.radius!r}; try 0.3")

    @classmethod
    def of(cls, budget: int | Budget) -> Budget:
        """A plain number is a budget of that many tokens."""
        return budget if isinstance(budget, Budget) else cls(tokens=budget)

    def limits(self, n: int) -> Limits:
        """Limits for a sample of `n` tokens, never above `n`."""
        if self.auto:
            most = n if self.max_tokens is None else min(n, self.max_tokens)
            return Limits(min(self.min_tokens, most), most, self.radius)
        k = self.tokens if self.tokens is not None else max(1, int(n * (self.keep_ratio or 0) + 0.5))
        return Limits(min(k, n), min(k, n))
