"""Sums of rows by segment, the same on every run, on CUDA too."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["segment_sum"]


def segment_sum(rows: Tensor, segment: Tensor, count: int) -> Tensor:
    """Sum of the rows [M, D] of each segment 0..count-1, in the order of rows; `segment` int64 [M]. -> [count, D].

    On CUDA the order in which `index_add_` adds depends on its threads, so the last bits would differ between runs.
    """
    if not rows.is_cuda:
        return rows.new_zeros(count, rows.shape[1]).index_add_(0, segment, rows)
    order = segment.argsort(stable=True)
    lengths = segment.bincount(minlength=count)
    return torch.segment_reduce(rows[order], "sum", lengths=lengths, initial=0.0)
