"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from fsr.v1 import types_pb2
from torch import Tensor

from services.errors import InvalidRequest

__all__ = ["Sampling", "choose"]


@dataclass(frozen=True)
class Sampling:
    """Checked sampling options. temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, message: types_pb2.Sampling, default_max_tokens: int, random_seed: int) -> Sampling:
        """Raises InvalidRequest naming the field."""
        if message.max_tokens < 0:
            raise InvalidRequest(f"sampling.max_tokens: {message.max_tokens} is negative; ask for at least 1")
        if not isfinite(message.temperature) or not 0 <= message.temperature <= 10:
            raise InvalidRequest(f"sampling.temperature: {message.temperature} is outside [0, 10]; 0 is greedy")
        if not isfinite(message.top_p) or not 0 <= message.top_p <= 1:
            raise InvalidRequest(f"sampling.top_p: {message.top_p} is outside (0, 1]; leave it unset for 1")
        if any(not text for text in message.stop):
            raise InvalidRequest("sampling.stop: holds an empty string; leave it out")
        return cls(
            max_tokens=message.max_tokens or default_max_tokens,
            temperature=message.temperature,
            top_p=message.top_p or 1.0,
            seed=message.seed if message.HasField("seed") else random_seed,
            stop=tuple(message.stop),
        )


def choose(logits: Tensor, sampling: Sampling, step: int) -> int:
    """The token after `step` generated ones, from logits [V].

    The random draw depends on seed and step alone, so an answer that moves to another replica goes on as it would have.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.float() / sampling.temperature).softmax(-1).cpu()
    ordered, index = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    ordered = torch.where(before < sampling.top_p, ordered, 0.0)
    generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + step) & (2**63 - 1))
    return int(index[torch.multinomial(ordered, 1, generator=generator)])
