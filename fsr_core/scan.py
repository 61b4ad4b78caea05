"""Scan (arXiv 2602.05809, eqs. 5-7): farthest-point sampling conditioned on the focus set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from fsr_core.budget import Limits
from fsr_core.keys import Keys
from fsr_core.picks import greedy_picks

__all__ = ["Keys", "Scan", "scan"]

ROUNDING = 2e-6  # equal tokens may come to such a distance; a `radius` of 0 must leave them out all the same
FOCUS_PART = 64  # focus tokens whose rows of similarities are held at a time
STOP_CHUNK = 64  # picks between two looks at whether all samples may stop


@dataclass(frozen=True)
class Scan:
    """The scan set S of each sample.

    picks       int64 [B, S_max], its members in order; a sample with fewer repeats its first focus token
    counts      |S|
    anchor      int64 [B, N], each token's most similar member of S; undefined if S is empty
    similarity  [B, N] fp32, the similarity to it; -inf if S is empty
    """

    picks: Tensor
    counts: list[int]
    anchor: Tensor
    similarity: Tensor


def scan(keys: Keys, focus: Tensor, counts: Sequence[int], limits: Sequence[Limits]) -> Scan:
    """Adds the token that is farthest from all chosen ones (eq. 5), ties by index, until a sample has enough.

    A sample stops at its maximum, or from its minimum on once no token is farther than its radius.

    keys    [B, N, Dk]
    focus   int64 [B, F], the focus set of each sample; one with fewer than F tokens repeats its first
    counts  tokens in each focus set
    """
    steps = [max(0, limit.maximum - count) for limit, count in zip(limits, counts, strict=True)]
    if max(steps) == 0:
        shape = keys.scale.shape
        return Scan(focus[:, :0], steps, focus.new_zeros(shape), keys.scale.new_full(shape, -inf))
    may_stop = any(limit.radius > -inf for limit in limits)
    stop = _Stop(counts, limits, focus.device) if may_stop else None
    found: _Found | None = None
    parts: list[Tensor] = []
    done = 0
    near = _nearest(keys, focus)
    for picks in greedy_picks(keys, near, steps, STOP_CHUNK if may_stop else max(steps)):
        size = picks.tokens.shape[1]
        tokens, rows, active = picks.tokens, picks.rows, None
        # A sample that has enough still gets picks, beside the others; they do not count.
        if stop is not None:
            active = stop.active(picks.nearest, done)
        elif done + size > min(steps):
            needed = torch.tensor(steps, device=focus.device).unsqueeze(1)
            active = torch.arange(done, done + size, device=focus.device) < needed
        if active is not None:
            tokens, rows = torch.where(active, tokens, focus[:, :1]), rows.masked_fill(~active.unsqueeze(2), -inf)
        found = _closest(tokens, rows, found)
        parts.append(tokens)
        done += size
        # On CUDA this makes the host wait, so it is done only if a sample may stop early.
        if stop is not None and not stop.goes_on():
            break
    assert found is not None  # some sample needs a pick
    picked = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return Scan(picked, steps if stop is None else stop.taken(), *found)


_Found = tuple[Tensor, Tensor]  # `anchor` and `similarity` of `Scan`


def _closest(tokens: Tensor, rows: Tensor, before: _Found | None) -> _Found:
    """The closest of `tokens` [B, c], given their `rows` [B, c, N], and of the tokens before them."""
    similarity, which = rows.max(1)
    anchor = tokens.gather(1, which)
    if before is None:
        return anchor, similarity
    return torch.where(similarity > before[1], anchor, before[0]), torch.maximum(similarity, before[1])


def _nearest(keys: Keys, focus: Tensor) -> Tensor:
    """Similarity of each token to the closest focus token, inf for focus tokens: [B, N]."""
    starts = range(0, focus.shape[1], FOCUS_PART)
    parts = [keys.cosine(focus[:, start : start + FOCUS_PART]).amax(1) for start in starts]
    near = parts[0] if len(parts) == 1 else torch.stack(parts).amax(0)
    return near.scatter_(1, focus, inf)


class _Stop:
    """Which picks a sample takes if it may stop before its maximum."""

    def __init__(self, counts: Sequence[int], limits: Sequence[Limits], device: torch.device) -> None:
        self._counts, self._minimum, self._maximum, self._radius = (
            torch.tensor(values, device=device).unsqueeze(1)
            for values in (
                counts,
                [limit.minimum for limit in limits],
                [limit.maximum for limit in limits],
                [limit.radius for limit in limits],
            )
        )
        self._active: list[Tensor] = []

    def active(self, nearest: Tensor, done: int) -> Tensor:
        """The picks, after `done` others, that a sample takes: bool [B, c]; `nearest` [B, c] as in `Picks`."""
        sizes = self._counts + torch.arange(done, done + nearest.shape[1], device=nearest.device)
        covered = (sizes >= self._minimum) & (1 - nearest <= self._radius + ROUNDING)
        self._active.append((sizes < self._maximum) & ~covered)
        return self._active[-1]

    def goes_on(self) -> bool:
        """Whether a sample took the last pick."""
        return bool(self._active[-1][:, -1].any())

    def taken(self) -> list[int]:
        """Number of picks that each sample took."""
        taken: list[int] = torch.stack([active.sum(1) for active in self._active]).sum(0).tolist()
        return taken
