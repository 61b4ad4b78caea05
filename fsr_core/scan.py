"""Scan (arXiv 2602.05809, eqs. 5-7): farthest-point sampling conditioned on the focus set.

Only similarities to *chosen* tokens are needed, and a running maximum of them, so memory is linear in N. A row at a
time is a matrix-vector product, bound by memory. But similarity to the chosen set only grows, so the tokens that are
farthest now can be played out among themselves, from their own small Gram matrix, until one of the others may be
farther; then the rows of all that was picked meanwhile are one matrix product. No row is computed that was not
picked, and the picks are those of the plain greedy algorithm. Of few tokens all similarities are computed instead:
where a row of them is no longer than a key, they take no more memory than the keys, and half of their matrix costs less
than many small steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

__all__ = ["Keys", "Scan", "scan"]

# CPU products are as wide as a multiple of this. Others take up to twice as long (19 columns longer than 32), and BLAS
# rounds narrower ones in another way; so a similarity has the same bits in whatever product it is computed, and a
# sample's picks do not depend on what else is in its batch.
LANES = 16
CHUNK = 16  # rows a time on CUDA
MOST = 1024  # tokens of which all similarities are computed; with more, those that were picked cost less
LOOKED_UP = 64  # rows a time where all are known
STRIPE = 6 * LANES  # rows a time of the matrix of all similarities


@dataclass(frozen=True)
class Scan:
    """`chosen` bool [B, N], the scan set S; `anchor` int64 [B, N] each token's most similar member of S (undefined
    where S is empty) and `similarity` [B, N] fp32 to it, -inf where S is empty."""

    chosen: Tensor
    anchor: Tensor
    similarity: Tensor


class Keys:
    """Where similarity is measured: keys [B, N, Dk] in fp32, first centred on their mean if asked.

    They are not scaled to unit length, which would copy them all; the products are. A zero key resembles nothing.
    """

    def __init__(self, keys: Tensor, centre: bool = False) -> None:
        keys = keys.detach().float()
        self.values = keys - keys.mean(1, keepdim=True) if centre else keys
        norm = torch.linalg.vector_norm(self.values, dim=2)
        self.scale = torch.where(norm > 0, 1 / norm, 0.0)
        n, width = self.values.shape[1:]
        self.all = self._all() if n <= min(width, MOST) and not keys.is_cuda else None  # [B, N, N]

    def _all(self) -> Tensor:
        batch, n, _ = self.values.shape
        matrix = self.values.new_empty(batch, n, n)
        for start in range(0, n, STRIPE):
            stripe, rest = slice(start, start + STRIPE), slice(start, n)
            products = torch.bmm(self.values[:, rest], self.values[:, stripe].transpose(1, 2))
            products *= self.scale[:, rest].unsqueeze(2)
            products *= self.scale[:, stripe].unsqueeze(1)
            matrix[:, rest, stripe] = products
            matrix[:, stripe, rest] = products.transpose(1, 2)
        return matrix

    def cosine(self, index: Tensor) -> Tensor:
        """Similarity of the tokens `index` [B, m] to all tokens: [B, m, N]."""
        if self.all is not None:
            return self.all[torch.arange(len(index)).unsqueeze(1), index]
        return self._products(index, self.values, self.scale)

    def gram(self, index: Tensor) -> Tensor:
        """Similarity of the tokens `index` [B, m] to one another: [B, m, m]."""
        return self._products(index, None, self.scale.gather(1, index))

    def _products(self, index: Tensor, others: Tensor | None, scale: Tensor) -> Tensor:
        batch, n, width = self.values.shape
        wide = index
        if (lacking := -index.shape[1] % LANES) and not index.is_cuda:
            wide = torch.cat([index, index[:, :1].expand(-1, lacking)], dim=1)
        place = wide + n * torch.arange(batch, device=index.device).unsqueeze(1)
        rows = self.values.reshape(-1, width).index_select(0, place.flatten()).view(batch, -1, width)
        others = rows[:, : index.shape[1]] if others is None else others
        # In this order the product is the faster one on CPU: its long side comes first.
        products = torch.bmm(others, rows.transpose(1, 2)).transpose(1, 2)[:, : index.shape[1]]
        return products * self.scale.gather(1, index).unsqueeze(2) * scale.unsqueeze(1)


@dataclass
class _Picks:
    """Consecutive picks of each sample: `tokens` [B, c], `nearest` [B, c] their similarity to what was chosen before
    them, `rows` [B, c, N] their similarity to all tokens."""

    tokens: Tensor
    nearest: Tensor
    rows: Tensor


def _row_by_row(keys: Keys, near: Tensor, steps: int) -> Iterator[_Picks]:
    """The plain greedy algorithm. On CUDA a row is cheap, and the host is never asked for anything."""
    for start in range(0, steps, CHUNK):
        some = []
        for _ in range(min(CHUNK, steps - start)):
            nearest, token = near.min(1)
            row = keys.cosine(token.unsqueeze(1))[:, 0]
            torch.maximum(near, row, out=near)
            near.scatter_(1, token.unsqueeze(1), inf)
            some.append((token, nearest, row))
        yield _Picks(*(torch.stack(values, 1) for values in zip(*some, strict=True)))


def _looked_up(known: Tensor, near: Tensor, steps: int) -> Iterator[_Picks]:
    """The same picks on CPU where all similarities, [B, N, N], are known."""
    batch, n = near.shape
    first = n * np.arange(batch)  # of each sample in what is flat
    rows, local = known.reshape(-1, n).numpy(), near.numpy()
    flat, row = local.reshape(-1), np.empty_like(local)
    for start in range(0, steps, LOOKED_UP):
        some = []
        for _ in range(min(LOOKED_UP, steps - start)):
            place = local.argmin(1) + first
            some.append((place, flat.take(place)))
            rows.take(place, axis=0, out=row, mode="clip")  # this mode needs no buffer
            np.maximum(local, row, out=local)
            flat[place] = inf
        places, nearest = (torch.from_numpy(np.stack(values, 1)) for values in zip(*some, strict=True))
        found = known.reshape(-1, n)[places]
        yield _Picks(places - torch.from_numpy(first).unsqueeze(1), nearest, found)


def _play_size(n: int, width: int) -> int:
    """How many of the farthest tokens are played out at a time.

    More of them last longer, so all keys are read, and some thirty operations issued, less often; but their Gram matrix
    grows with the square. The two costs meet at the root of a sum of both; the factors were measured on two cores.
    """
    return LANES * max(1, round((4 * n + 4e6 / width) ** 0.5 / LANES))


def _played_out(keys: Keys, near: Tensor, left: list[int]) -> Iterator[_Picks]:
    """The same picks on CPU. `left` is how many each sample may still pick; more than that may be picked for it."""
    batch, n = near.shape
    everyone, size = np.arange(batch), min(n, _play_size(n, keys.values.shape[2]))
    remaining = np.array(left)
    while (remaining > 0).any():
        order = near.argsort(dim=1, stable=True)
        block = order[:, :size].sort(dim=1).values  # by index, so that the first of equals is the right one
        ids, among = block.numpy(), keys.gram(block).numpy()
        local = near.gather(1, block).numpy()
        if size < n:
            rival = order[:, size]
            rival_near, rival_id = near.gather(1, rival.unsqueeze(1))[:, 0].numpy(), rival.numpy()
        else:
            rival_near, rival_id = np.full(batch, np.inf, np.float32), np.full(batch, n)
        picks, values = [], []
        for step in range(int(remaining.max())):
            slot = local.argmin(1)
            value, token = local[everyone, slot], ids[everyone, slot]
            beaten = (value > rival_near) | ((value == rival_near) & (token > rival_id))
            if (beaten & (remaining > step)).any():
                break
            np.maximum(local, among[everyone, slot], out=local)
            local[everyone, slot] = np.inf
            picks.append(token)
            values.append(value)
        count = len(picks)
        if LANES < count < remaining.max():
            count -= count % LANES  # the product would be as wide; what is cut off is picked next time
        remaining -= count
        tokens = torch.from_numpy(np.stack(picks[:count], 1))
        rows = keys.cosine(tokens)
        torch.maximum(near, rows.amax(1), out=near)
        near.scatter_(1, tokens, inf)
        yield _Picks(tokens, torch.from_numpy(np.stack(values[:count], 1)), rows)


def _picks(keys: Keys, near: Tensor, left: list[int]) -> Iterator[_Picks]:
    if near.is_cuda:
        return _row_by_row(keys, near, max(left))
    return _played_out(keys, near, left) if keys.all is None else _looked_up(keys.all, near, max(left))


def scan(keys: Keys, focus: Tensor, counts: Tensor, least: Tensor, most: Tensor, radius: Tensor) -> Scan:
    """Adds the token farthest from everything chosen (eq. 6), ties by index, until a sample has enough.

    keys [B, N, Dk]; focus int64 [B, F] the focus set of each sample, of which the first counts[b] count; a sample
    stops at most[b] tokens, or from least[b] on once nothing is farther than radius[b].
    """
    batch, n, _ = keys.values.shape
    chosen = torch.zeros(batch, n, dtype=torch.bool, device=focus.device)
    found = Scan(chosen, torch.zeros_like(chosen, dtype=torch.int64), keys.values.new_full((batch, n), -inf))
    left = (most - counts).tolist()
    if max(left) <= 0:
        return found
    # Shorter focus sets are padded with their own first token, which changes no maximum.
    focus = torch.where(torch.arange(focus.shape[1], device=focus.device) < counts.unsqueeze(1), focus, focus[:, :1])
    near = torch.full_like(found.similarity, -inf)  # similarity to the closest chosen token
    for some in focus.split(64, dim=1):
        near = torch.maximum(near, keys.cosine(some).amax(1))
    near.scatter_(1, focus, inf)
    done, stops_early = 0, bool((radius > -inf).any())
    for picks in _picks(keys, near, left):
        # A sample that has enough goes on beside the others; what it picks after that does not count.
        have = counts.unsqueeze(1) + done + torch.arange(picks.tokens.shape[1], device=focus.device)
        covered = (have >= least.unsqueeze(1)) & (1 - picks.nearest <= radius.unsqueeze(1))
        active = (have < most.unsqueeze(1)) & ~covered
        found = _add(found, picks, active)
        done += picks.tokens.shape[1]
        # On CUDA asking makes the host wait, which only a sample that may stop early is worth.
        if (stops_early or not near.is_cuda) and not bool(active[:, -1].any()):
            break
    return found


def _add(found: Scan, picks: _Picks, active: Tensor) -> Scan:
    """The scan set with those of `picks` for which `active` [B, c] holds."""
    best, which = picks.rows.masked_fill(~active.unsqueeze(2), -inf).max(1)
    closer = best > found.similarity
    anchor = torch.where(closer, picks.tokens.gather(1, which), found.anchor)
    # Adding up, not scattering truth values: an inactive pick may name a token that an active one has chosen.
    times = torch.zeros_like(anchor).scatter_add_(1, picks.tokens, active.long())
    return Scan(found.chosen | (times > 0), anchor, torch.maximum(best, found.similarity))
