"""Greedy farthest-point sampling: the token that is farthest from all chosen ones, again and again, ties by index.

It needs only the similarities of all tokens to *chosen* ones, and their running maximum. Four ways make the same picks:

- row by row: one row of similarities for each pick, the plain algorithm.
- from the matrix, for few tokens: all similarities are computed first. If a row of them is no longer than a key, they
  take no more memory than the keys, and half of their matrix costs less than many small steps.
- by a kernel: from the matrix on CUDA, where one launch makes all picks of a batch (`picks_kernel.py`, where Triton is
  installed).
- in blocks, for many tokens on CPU: the similarity to the chosen set only grows. So the tokens that are farthest now
  form a block, and picks are made inside the block, from its own small Gram matrix, until a token outside may be
  farther. Then the rows of these picks are one matrix product. Only rows of picked tokens are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np
import torch
from torch import Tensor

from fsr_core.keys import LANES, Keys

__all__ = ["Picks", "greedy_picks", "in_blocks", "row_by_row"]

CHUNK = 16  # picks at a time, row by row


@dataclass
class Picks:
    """Consecutive picks of each sample.

    tokens   int64 [B, c]
    nearest  [B, c] similarity of each pick to the closest token that was chosen before it
    rows     [B, c, N] similarity of each pick to all tokens
    """

    tokens: Tensor
    nearest: Tensor
    rows: Tensor


def greedy_picks(keys: Keys, near: Tensor, steps: list[int], chunk: int) -> Iterator[Picks]:
    """Picks the token of the smallest `near` [B, N] again and again, the cheapest way.

    near   similarity to the closest chosen token, inf for chosen tokens; it is changed
    steps  number of picks that each sample needs; it may get more
    chunk  most picks at a time, where all similarities are known
    """
    make = _kernel() if near.is_cuda else _host_picks
    if keys.matrix is not None and make is not None:
        return _from_matrix(keys, keys.matrix, near, max(steps), chunk, make)
    return row_by_row(keys, near, max(steps)) if near.is_cuda else in_blocks(keys, near, steps)


#: (matrix [B, N, N], near [B, N], steps) -> tokens and nearest [B, steps], as in `Picks`
Make = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@cache
def _kernel() -> Make | None:
    """The kernel, or None without Triton; then a pick takes several launches."""
    try:
        from fsr_core.picks_kernel import kernel_picks
    except ImportError:
        return None
    return kernel_picks


def row_by_row(keys: Keys, near: Tensor, steps: int) -> Iterator[Picks]:
    """The plain algorithm. The host never waits for CUDA."""
    for start in range(0, steps, CHUNK):
        picks = []
        for _ in range(min(CHUNK, steps - start)):
            nearest, token = near.min(1)
            row = keys.cosine(token.unsqueeze(1))[:, 0]
            torch.maximum(near, row, out=near)
            near.scatter_(1, token.unsqueeze(1), inf)
            picks.append((token, nearest, row))
        yield Picks(*(torch.stack(values, 1) for values in zip(*picks, strict=True)))


def _from_matrix(keys: Keys, matrix: Tensor, near: Tensor, steps: int, chunk: int, make: Make) -> Iterator[Picks]:
    """The same picks from the matrix of all similarities."""
    for start in range(0, steps, chunk):
        tokens, nearest = make(matrix, near, min(chunk, steps - start))
        yield Picks(tokens, nearest, keys.cosine(tokens))


def _host_picks(matrix: Tensor, near: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Tokens and similarities as in `Picks`, on CPU. NumPy's calls take a third of the time of torch's."""
    tokens, nearest = np.empty((len(near), steps), np.int64), np.empty((len(near), steps), np.float32)
    for sample, (rows, local) in enumerate(zip(matrix.numpy(), near.numpy(), strict=True)):
        for step in range(steps):
            tokens[sample, step] = token = local.argmin()
            nearest[sample, step] = local[token]
            np.maximum(local, rows[token], out=local)
            local[token] = inf
    return torch.from_numpy(tokens), torch.from_numpy(nearest)


def _block_size(n: int, width: int) -> int:
    """How many of the farthest tokens form a block.

    A larger block lasts for more picks, so reading all keys and issuing some thirty operations happens less often. But
    its Gram matrix grows with the square. The best size is the root of a sum of both costs; the factors were measured
    on two cores.
    """
    return LANES * max(1, round((4 * n + 4e6 / width) ** 0.5 / LANES))


def in_blocks(keys: Keys, near: Tensor, steps: list[int]) -> Iterator[Picks]:
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
