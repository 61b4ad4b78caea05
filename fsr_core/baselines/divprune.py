"""DivPrune (arXiv 2503.02175): the subset whose closest pair is farthest apart."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fsr_core.budget import Limits
from fsr_core.one_by_one import OneByOne, kept, raw_keys
from fsr_core.scan import Keys, scan
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["DivPrune", "most_isolated"]


@dataclass(frozen=True)
class DivPrune(OneByOne):
    """Greedy solution of the max-min diversity problem, argmax over S of min d(i, j) (eq. 3), d = 1 - cosine (eq. 4).

    The first token is the one whose nearest neighbour is farthest. Each next token is the farthest from the chosen ones
    (Algorithm 1), ties by index. The choice depends only on the picture. The authors' code holds all N x N distances
    and takes the minimum over all picks again at each step; here rows are computed when they are needed, and the choice
    is the same. The code measures behind the projector, in the language model's embeddings; here it is the backbone's
    similarity space, which for LLaVA is the same one.
    """

    name: ClassVar[str] = "divprune"

    def _comparisons(self, n: int, k: int) -> int:
        return n * (n + k)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        keys = Keys(raw_keys(sample).unsqueeze(0))
        first = most_isolated(keys)
        rest = scan(keys, first.unsqueeze(0), [1], [Limits(k, k)])
        return kept(sample, scan=torch.cat([first, rest.picks[0]]))


def most_isolated(keys: Keys) -> Tensor:
    """The token whose nearest neighbour is farthest, ties by index. Keys of one sample, [1, N, Dk] -> int64 [1]."""
    closest = []
    for part in torch.arange(keys.values.shape[1], device=keys.values.device).split(256):
        rows = keys.cosine(part.unsqueeze(0))[0]
        closest.append(rows.scatter_(1, part.unsqueeze(1), -inf).amax(1))
    nearest = torch.cat(closest)
    # Two tokens that are each other's nearest tie, except for rounding. The lower index is taken.
    return (nearest <= nearest.min() + 1e-6).nonzero()[0]
