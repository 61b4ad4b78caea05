"""How likely the chosen tokens of a step were, and which tokens were likeliest at their places.

The probabilities are the model's own: before temperature, repetition penalty, top-k and top-p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TokenLogprob", "likeliest", "log_probabilities"]


class TokenLogprob(NamedTuple):
    """A token of the vocabulary and the natural logarithm of its probability."""

    id: int
    logprob: float


def log_probabilities(
    logits: Tensor, tokens: Tensor, counts: Sequence[int]
) -> list[tuple[float, tuple[TokenLogprob, ...]]]:
    """For each of R rows: the log probability of its token, and its likeliest tokens, likeliest first.

    Args:
        logits: ``[R, V]``, any floating dtype.
        tokens: ``[R]`` int64, the chosen token of each row.
        counts: how many of the likeliest tokens each row asks for. The rows of a batch may differ.
    """
    logprobs = logits.float().log_softmax(-1)
    # The chosen token comes first, then as many of the likeliest as any row asks for.
    ids = tokens.unsqueeze(1)
    width = min(max(counts), logits.shape[1])
    if width:
        ids = torch.cat([ids, logprobs.topk(width, dim=1).indices], 1)
    values = logprobs.gather(1, ids)
    return [
        (row[0], likeliest(dict(zip(candidates, row, strict=True)), candidates[0], count))
        for row, candidates, count in zip(values.tolist(), ids.tolist(), counts, strict=True)
    ]


def likeliest(candidates: Mapping[int, float], chosen: int, count: int) -> tuple[TokenLogprob, ...]:
    """The `count` likeliest tokens, likeliest first, of candidates with their log probabilities.

    Of equally likely tokens the chosen one comes first, so a greedy choice always leads the list, then smaller ids.
    """
    ranked = sorted(candidates.items(), key=lambda item: (-item[1], item[0] != chosen, item[0]))
    return tuple(TokenLogprob(*item) for item in ranked[:count])
