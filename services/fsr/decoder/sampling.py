"""How the next token is chosen from the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fsr.common.errors import InvalidRequest
from fsr.common.limits import MAX_STOP_CHARACTERS, MAX_STOPS, SMALLEST_DIVISOR
from fsr.v1 import types_pb2

__all__ = ["Sampling", "choose", "uniform"]


@dataclass(frozen=True)
class Sampling:
    """Checked sampling options. temperature 0 is greedy, top_k 0 keeps all."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_k: int = 0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    logprobs: bool = False

    @classmethod
    def of(cls, message: types_pb2.Sampling, default_max_tokens: int, random_seed: int) -> Sampling:
        """Raises InvalidRequest naming the field."""
        if message.max_tokens < 0:
            raise InvalidRequest(f"sampling.max_tokens: {message.max_tokens} is negative; ask for at least 1")
        if not isfinite(message.temperature) or not 0 <= message.temperature <= 10:
            raise InvalidRequest(f"sampling.temperature: {message.temperature} is outside [0, 10]; 0 is greedy")
        if not isfinite(message.top_p) or not 0 <= message.top_p <= 1:
            raise InvalidRequest(f"sampling.top_p: {message.top_p} is outside (0, 1]; leave it unset for 1")
        if message.top_k < 0:
            raise InvalidRequest(f"sampling.top_k: {message.top_k} is negative; leave it unset to keep all tokens")
        if not isfinite(message.repetition_penalty) or not 0 <= message.repetition_penalty <= 10:
            raise InvalidRequest(
                f"sampling.repetition_penalty: {message.repetition_penalty} is outside (0, 10]; leave it unset for 1"
            )
        for name in ("temperature", "repetition_penalty"):
            if 0 < getattr(message, name) < SMALLEST_DIVISOR:
                remedy = "0 is greedy" if name == "temperature" else "leave it unset for 1"
                raise InvalidRequest(f"sampling.{name}: {getattr(message, name):.3g} is below 1e-6; {remedy}")
        _check_stop(message.stop)
        return cls(
            max_tokens=message.max_tokens or default_max_tokens,
            temperature=message.temperature,
            top_p=message.top_p or 1.0,
            seed=message.seed if message.HasField("seed") else random_seed,
            stop=tuple(message.stop),
            top_k=message.top_k,
            repetition_penalty=message.repetition_penalty or 1.0,
            ignore_eos=message.ignore_eos,
            logprobs=message.logprobs,
        )

    @property
    def is_argmax(self) -> bool:
        """Whether the largest logit is chosen, whatever came before."""
        return self.temperature == 0 and self.repetition_penalty == 1

    @cached_property
    def processors(self) -> LogitsProcessorList:
        """The library's own, in the order in which `generate` applies them."""
        steps = LogitsProcessorList()
        if self.repetition_penalty != 1:
            steps.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature > 0:
            steps.append(TemperatureLogitsWarper(self.temperature))
            if self.top_k > 0:
                steps.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                steps.append(TopPLogitsWarper(self.top_p))
        return steps


def _check_stop(stop: Sequence[str]) -> None:
    """Raises InvalidRequest."""
    if len(stop) > MAX_STOPS:
        raise InvalidRequest(f"sampling.stop: {len(stop)} strings are more than {MAX_STOPS}; send fewer")
    for at, text in enumerate(stop):
        if not text:
            raise InvalidRequest("sampling.stop: holds an empty string; leave it out")
        if len(text) > MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"sampling.stop[{at}]: {len(text)} characters are more than {MAX_STOP_CHARACTERS}; send its beginning"
            )


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) for the token after `step` generated ones: a function of its arguments alone, so that an
    answer which moves to another replica goes on as it would have."""
    return Random(f"{seed}/{step}").random()


def choose(logits: Tensor, sampling: Sampling, seen: Tensor, step: int) -> int:
    """The token after `step` generated ones.

    Args:
        logits: [V], any floating dtype and device.
        seen: [n] int64, tokens of prompt and answer so far, which the repetition penalty looks at.
        step: tokens of the answer so far, those of earlier replicas included.
    """
    if sampling.is_argmax:
        return int(logits.argmax())
    before: Any = seen.unsqueeze(0).to(logits.device)  # the library asks for a LongTensor by name
    scores = sampling.processors(before, logits.float().unsqueeze(0))[0]
    if sampling.temperature == 0:
        return int(scores.argmax())
    # In double precision, so that the sum over a large vocabulary does not move the boundaries between tokens.
    total = scores.cpu().double().softmax(-1).cumsum(0)
    drawn = torch.searchsorted(total, total[-1] * uniform(sampling.seed, step), right=True)
    return int(drawn.clamp(max=len(total) - 1))
