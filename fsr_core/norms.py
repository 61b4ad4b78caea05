"""Lengths of vectors that single precision cannot square."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lengths", "sized"]

# Squares of the entries of a shorter vector may be 0 in single precision; then it would pass for a zero vector.
_SHORT = 1e-12


def sized(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [..., D] in fp32 with their directions, and their lengths [...]. Very short ones are made longer."""
    return lengths(vectors)[:2]


def lengths(vectors: Tensor) -> tuple[Tensor, Tensor, float]:
    """What `sized` returns, and the shortest length."""
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    length = torch.linalg.vector_norm(vectors, dim=-1)
    shortest = float(length.min())
    if shortest < _SHORT:
        largest = vectors.abs().amax(-1, keepdim=True)
        longer = (length < _SHORT).unsqueeze(-1) & (largest > 0)
        vectors = torch.where(longer, vectors / torch.where(longer, largest, 1.0), vectors)
        length = torch.linalg.vector_norm(vectors, dim=-1)
        shortest = float(length.min())
    return vectors.float(), length.float(), shortest
