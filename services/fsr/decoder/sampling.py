"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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

from fsr.common.sampling_limits import check_sampling
from fsr.v1 import types_pb2

__all__ = ["Sampling", "choose", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Checked sampling options. Temperature 0 is greedy, top_k 0 keeps all tokens."""

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
        """The options of a message, with defaults for those that it leaves unset.

        Raises:
            InvalidRequest: an option is out of range; the message names the field.
        """
        check_sampling(message)
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
        """Whether the largest logit is always chosen."""
        return self.temperature == 0 and self.repetition_penalty == 1

    @cached_property
    def processors(self) -> LogitsProcessorList:
        """The library's processors, in the order in which its `generate` applies them."""
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


def uniform(seed: int, step: int) -> float:
    """A random number in [0, 1) for the answer token after `step` others.

    It depends on the arguments alone, so an answer continues on another replica with the same draws.
    """
    return Random(f"{seed}/{step}").random()


def choose(logits: Tensor, sampling: Sampling, seen: Tensor, step: int) -> int:
    """The next token of an answer.

    Args:
        logits: [V], any floating dtype and device.
        seen: [n] int64, tokens of the prompt and the answer so far; the repetition penalty looks at them.
        step: number of answer tokens so far, those of earlier replicas included.
    """
    if sampling.is_argmax:
        return int(logits.argmax())
    input_ids: Any = seen.unsqueeze(0).to(logits.device)  # Any, because the library's type is LongTensor
    scores = sampling.processors(input_ids, logits.float().unsqueeze(0))[0]
    if sampling.temperature == 0:
        return int(scores.argmax())
    # In double precision, so that rounding in a large vocabulary does not move the boundaries between tokens.
    cumulative = scores.cpu().double().softmax(-1).cumsum(0)
    token = torch.searchsorted(cumulative, cumulative[-1] * uniform(sampling.seed, step), right=True)
    return int(token.clamp(max=len(cumulative) - 1))
