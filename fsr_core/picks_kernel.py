"""Greedy picks by a kernel of Triton: one launch makes all picks of a batch, one program those of a sample.

Torch needs half a dozen launches for each pick. Import this module only where Triton is installed; it comes with the
CUDA builds of torch for Linux.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["kernel_picks"]


@triton.jit
def _pick(matrix, near, tokens, nearest, n, steps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < n
    local = tl.load(near + sample * n + column, mask=inside, other=float("inf"))
    for step in range(steps):
        value, token = tl.min(local, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(tokens + sample * steps + step, token.to(tl.int64))
        tl.store(nearest + sample * steps + step, value)
        row = tl.load(matrix + (sample * n + token) * n + column, mask=inside, other=float("-inf"))
        local = tl.where(column == token, float("inf"), tl.maximum(local, row))
    tl.store(near + sample * n + column, local, mask=inside)


def kernel_picks(matrix: Tensor, near: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`steps` picks of each sample: tokens int64 [B, steps], and the similarity of each to the closest token that was
    chosen before it.

    matrix  [B, N, N] fp32, the similarities of all tokens
    near    [B, N] fp32, similarity to the closest chosen token, inf for chosen tokens; it is changed
    """
    batch, n = near.shape
    tokens = torch.empty(batch, steps, dtype=torch.int64, device=near.device)
    nearest = torch.empty(batch, steps, device=near.device)
    block = triton.next_power_of_2(n)
    _pick[(batch,)](matrix, near, tokens, nearest, n, steps, BLOCK=block, num_warps=4 if block <= 1024 else 8)
    return tokens, nearest
