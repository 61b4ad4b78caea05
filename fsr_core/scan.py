"""Scan (arXiv 2602.05809, eqs. 5-7): farthest-point sampling conditioned on the focus set.

Greedy sampling needs only the similarities of all tokens to *chosen* ones, and their running maximum, so memory is
linear in N. Three ways make the same picks as the plain greedy algorithm:

- row by row: one row of similarities per pick. This is a matrix-vector product, bound by memory; used on CUDA.
- in blocks: the similarity to the chosen set only grows. So the tokens that are farthest now form a block, and picks
  are made inside the block, from its own small Gram matrix, until a token outside may be farther. Then the rows of
  these picks are one matrix product. Only rows of picked tokens are computed.
- from the matrix: for few tokens all similarities are computed first. If a row of them is no longer than a key, they
  take no more memory than the keys, and half of their matrix costs less than many small steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from fsr_core.norms import sized

__all__ = ["Keys", "Scan", "scan"]

# CPU products are padded to a multiple of this width. Other widths take up to twice as long (19 columns take longer
# than 32), and BLAS rounds narrow products differently. With padding a similarity has the same bits in every product,
# so a sample's picks do not depend on the rest of its batch.
LANES = 16
CHUNK = 16  # picks at a time, row by row
MATRIX_TOKENS = 1024  # most tokens whose matrix of all similarities is computed; with more, rows of the picks cost less
MATRIX_CHUNK = 64  # picks at a time, from the matrix
ROUNDING = 2e-6  # equal tokens may come to such a distance; a `radius` of 0 must leave them out all the same
STRIPE = 6 * LANES  # rows of the matrix of all similarities that are computed at a time


@dataclass(frozen=True)
class Scan:
    """The scan set S of each sample.

    chosen      bool [B, N], true for members of S
    anchor      int64 [B, N], each token's most similar member of S; undefined if S is empty
    similarity  [B, N] fp32, the similarity to it; -inf if S is empty
    """

    chosen: Tensor
    anchor: Tensor
    similarity: Tensor


class Keys:
    """Keys [B, N, Dk] in fp32, whose cosines are the similarities; with `centre` their mean is subtracted first.

    The keys are not scaled to unit length, because that would copy them; products are scaled. A zero key has similarity
    1 to other zero keys, which are its duplicates, and 0 to the rest.
    """

    def __init__(self, keys: Tensor, centre: bool = False) -> None:
        keys = keys.detach()
        self.values, norm = sized(keys - keys.float().mean(1, keepdim=True) if centre else keys)
        self.scale = torch.where(norm > 0, 1 / norm, 0.0)
        self.zero = (norm == 0).float() if bool((norm == 0).any()) else None  # [B, N], 1 for zero keys
        n, width = self.values.shape[1:]
        self.matrix = self._matrix() if n <= min(width, MATRIX_TOKENS) and not keys.is_cuda else None  # [B, N, N]

    def _matrix(self) -> Tensor:
        batch, n, _ = self.values.shape
        matrix = self.values.new_empty(batch, n, n)
        for start in range(0, n, STRIPE):
            stripe, rest = slice(start, start + STRIPE), slice(start, n)
            products = torch.bmm(self.values[:, rest], self.values[:, stripe].transpose(1, 2))
            products *= self.scale[:, rest].unsqueeze(2)
            products *= self.scale[:, stripe].unsqueeze(1)
            matrix[:, rest, stripe] = products
            matrix[:, stripe, rest] = products.transpose(1, 2)
        if self.zero is not None:
            matrix += self.zero.unsqueeze(2) * self.zero.unsqueeze(1)
        return matrix

    def cosine(self, index: Tensor) -> Tensor:
        """Similarity of the tokens `index` [B, m] to all tokens: [B, m, N]."""
        if self.matrix is not None:
            return self.matrix[torch.arange(len(index)).unsqueeze(1), index]
        return self._products(index, to_all=True)

    def gram(self, index: Tensor) -> Tensor:
        """Similarity of the tokens `index` [B, m] to one another: [B, m, m]."""
        return self._products(index, to_all=False)

    def _products(self, index: Tensor, to_all: bool) -> Tensor:
        batch, n, width = self.values.shape
        padded, count = index, index.shape[1]
        if (missing := -count % LANES) and not index.is_cuda:
            padded = torch.cat([index, index[:, :1].expand(-1, missing)], dim=1)
        place = padded + n * torch.arange(batch, device=index.device).unsqueeze(1)
        rows = self.values.reshape(-1, width).index_select(0, place.flatten()).view(batch, -1, width)
        # On CPU the product is faster with its long side first.
        others, scale = self.values if to_all else rows[:, :count], self.scale.gather(1, index)
        products = torch.bmm(others, rows.transpose(1, 2)).transpose(1, 2)[:, :count]
        products = products * scale.unsqueeze(2) * (self.scale if to_all else scale).unsqueeze(1)
        if self.zero is not None:
            zero = self.zero.gather(1, index)
            products += zero.unsqueeze(2) * (self.zero if to_all else zero).unsqueeze(1)
        return products


@dataclass
class Picks:
    """Consecutive picks of each sample."""

    tokens: Tensor  # int64 [B, c]
    nearest: Tensor  # [B, c] similarity of each pick to the closest token that was chosen before it
    rows: Tensor  # [B, c, N] similarity of each pick to all tokens


def row_by_row(keys: Keys, near: Tensor, steps: int) -> Iterator[Picks]:
    """The plain greedy algorithm. On CUDA a row is cheap, and the host never waits."""
    for start in range(0, steps, CHUNK):
        picks = []
        for _ in range(min(CHUNK, steps - start)):
            nearest, token = near.min(1)
            row = keys.cosine(token.unsqueeze(1))[:, 0]
            torch.maximum(near, row, out=near)
            near.scatter_(1, token.unsqueeze(1), inf)
            picks.append((token, nearest, row))
        yield Picks(*(torch.stack(values, 1) for values in zip(*picks, strict=True)))


def _from_matrix(matrix: Tensor, near: Tensor, steps: int) -> Iterator[Picks]:
    """The same picks on CPU, from the matrix of all similarities [B, N, N]."""
    batch, n = near.shape
    first = n * np.arange(batch)  # place of each sample's first token in the flattened batch
    rows, local = matrix.reshape(-1, n).numpy(), near.numpy()
    flat, row = local.reshape(-1), np.empty_like(local)
    for start in range(0, steps, MATRIX_CHUNK):
        picks = []
        for _ in range(min(MATRIX_CHUNK, steps - start)):
            place = local.argmin(1) + first
            picks.append((place, flat.take(place)))
            rows.take(place, axis=0, out=row, mode="clip")  # this mode needs no buffer
            np.maximum(local, row, out=local)
            flat[place] = inf
        places, nearest = (torch.from_numpy(np.stack(values, 1)) for values in zip(*picks, strict=True))
        similarities = matrix.reshape(-1, n)[places]
        yield Picks(places - torch.from_numpy(first).unsqueeze(1), nearest, similarities)


def _block_size(n: int, width: int) -> int:
    """How many of the farthest tokens form a block.

    A larger block lasts for more picks, so reading all keys and issuing some thirty operations happens less often. But
    its Gram matrix grows with the square. The best size is the root of a sum of both costs; the factors were measured
    on two cores.
    """
    return LANES * max(1, round((4 * n + 4e6 / width) ** 0.5 / LANES))


def _in_blocks(keys: Keys, near: Tensor, steps: list[int]) -> Iterator[Picks]:
    """The same picks on CPU. `steps` is the number of picks that each sample needs; it may get more."""
    batch, n = near.shape
    samples, size = np.arange(batch), min(n, _block_size(n, keys.values.shape[2]))
    remaining = np.array(steps)
    while (remaining > 0).any():
        order = near.argsort(dim=1, stable=True)
        block = order[:, :size].sort(dim=1).values  # by index, so that argmin takes the lowest index of a tie
        ids, gram = block.numpy(), keys.gram(block).numpy()
        local = near.gather(1, block).numpy()
        if size < n:
            rival = order[:, size]
            rival_near, rival_id = near.gather(1, rival.unsqueeze(1))[:, 0].numpy(), rival.numpy()
        else:
            rival_near, rival_id = np.full(batch, np.inf, np.float32), np.full(batch, n)
        picks, values = [], []
        for step in range(int(remaining.max())):
            slot = local.argmin(1)
            value, token = local[samples, slot], ids[samples, slot]
            beaten = (value > rival_near) | ((value == rival_near) & (token > rival_id))
            if (beaten & (remaining > step)).any():
                break
            np.maximum(local, gram[samples, slot], out=local)
            local[samples, slot] = np.inf
            picks.append(token)
            values.append(value)
        count = len(picks)
        if LANES < count < remaining.max():
            count -= count % LANES  # a full multiple wastes no padding; the next block makes the other picks again
        remaining -= count
        tokens = torch.from_numpy(np.stack(picks[:count], 1))
        rows = keys.cosine(tokens)
        torch.maximum(near, rows.amax(1), out=near)
        near.scatter_(1, tokens, inf)
        yield Picks(tokens, torch.from_numpy(np.stack(values[:count], 1)), rows)


def greedy_picks(keys: Keys, near: Tensor, steps: list[int]) -> Iterator[Picks]:
    """Picks the token of the smallest `near` [B, N] again and again, the cheapest way.

    near   similarity to the closest chosen token, inf for chosen tokens; it is changed
    steps  number of picks that each sample needs; it may get more
    """
    if near.is_cuda:
        return row_by_row(keys, near, max(steps))
    return _in_blocks(keys, near, steps) if keys.matrix is None else _from_matrix(keys.matrix, near, max(steps))


def scan(keys: Keys, focus: Tensor, counts: Tensor, minimum: Tensor, maximum: Tensor, radius: Tensor) -> Scan:
    """Adds the token that is farthest from all chosen ones (eq. 5), ties by index, until a sample has enough.

    keys              [B, N, Dk]
    focus             int64 [B, F], the focus set of sample b is focus[b, :counts[b]]
    minimum, maximum  int64 [B] tokens: a sample stops at its maximum, or from its minimum on once no token is farther
                      than its `radius` [B]
    """
    batch, n, _ = keys.values.shape
    chosen = torch.zeros(batch, n, dtype=torch.bool, device=focus.device)
    result = Scan(chosen, torch.zeros_like(chosen, dtype=torch.int64), keys.values.new_full((batch, n), -inf))
    steps = (maximum - counts).tolist()
    if max(steps) <= 0:
        return result
    # Shorter focus sets are padded with their own first token; this changes no maximum.
    focus = torch.where(torch.arange(focus.shape[1], device=focus.device) < counts.unsqueeze(1), focus, focus[:, :1])
    near = torch.full_like(result.similarity, -inf)  # similarity to the closest chosen token
    for part in focus.split(64, dim=1):
        near = torch.maximum(near, keys.cosine(part).amax(1))
    near.scatter_(1, focus, inf)
    done, stops_early = 0, bool((radius > -inf).any())
    for picks in greedy_picks(keys, near, steps):
        # A sample that has enough still gets picks, beside the others; they do not count.
        sizes = counts.unsqueeze(1) + done + torch.arange(picks.tokens.shape[1], device=focus.device)
        covered = (sizes >= minimum.unsqueeze(1)) & (1 - picks.nearest <= radius.unsqueeze(1) + ROUNDING)
        active = (sizes < maximum.unsqueeze(1)) & ~covered
        result = _add(result, picks, active)
        done += picks.tokens.shape[1]
        # On CUDA this check makes the host wait, so it is made only if a sample may stop early.
        if (stops_early or not near.is_cuda) and not bool(active[:, -1].any()):
            break
    return result


def _add(result: Scan, picks: Picks, active: Tensor) -> Scan:
    """The scan set with those of `picks` whose `active` [B, c] is true."""
    best, which = picks.rows.masked_fill(~active.unsqueeze(2), -inf).max(1)
    closer = best > result.similarity
    anchor = torch.where(closer, picks.tokens.gather(1, which), result.anchor)
    # Counts, not truth values: an inactive pick may name a token that an active one has chosen.
    times = torch.zeros_like(anchor).scatter_add_(1, picks.tokens, active.long())
    return Scan(result.chosen | (times > 0), anchor, torch.maximum(best, result.similarity))
