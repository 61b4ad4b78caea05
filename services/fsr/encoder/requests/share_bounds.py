"""The bounds of a gateway's policy on a budget that is a share: only here is it known how many tokens a share is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

from fsr.common.errors import InvalidRequest
from fsr_core import Budget

__all__ = ["ShareBounds"]


@dataclass(frozen=True)
class ShareBounds:
    """The fewest and the most tokens of an image; a `maximum` of None is no limit.

    An image with fewer tokens than `minimum` keeps all. A share out of bounds is refused, or, if `narrows`, replaced by
    the nearest number of tokens: that is for a share which the policy itself has chosen.
    """

    minimum: int = 0
    maximum: int | None = None
    narrows: bool = False

    def apply(self, budget: Budget, tokens: int) -> Budget:
        """The budget of an image with so many tokens. Raises InvalidRequest for a share out of bounds."""
        if budget.keep_ratio is None:
            return budget
        high = tokens if self.maximum is None else min(tokens, self.maximum)
        low, kept = min(self.minimum, high), budget.limits(tokens).maximum
        if low <= kept <= high:
            return budget
        if self.narrows:
            return Budget(tokens=min(max(kept, low), high))
        share = f"{budget.keep_ratio:g} of {tokens} tokens are {kept}"
        if kept > high:
            reason, remedy = f"{share}, more than {high}, the most that the policy allows", "at most"
        else:
            reason, remedy = f"{share}, fewer than {low}, the fewest that the policy allows", "at least"
        nearest = _share_within(low, high, tokens, up=kept < low)
        raise InvalidRequest(f"budget.keep_ratio: {reason}; ask for {remedy} {nearest:g}")


def _share_within(low: int, high: int, tokens: int, *, up: bool) -> float:
    """The least share of `low`, or the greatest of `high`, with few digits: low..high of so many tokens."""
    for digits in range(2, 9):
        scale = 10**digits
        steps = ceil(low / tokens * scale) if up else floor(high / tokens * scale)
        share = min(steps, scale) / scale
        if share > 0 and low <= Budget(keep_ratio=share).limits(tokens).maximum <= high:
            return share
    return (low if up else high) / tokens
