"""Sampling options: how the tokens of an answer are chosen, and how many at most."""

from __future__ import annotations

from dataclasses import dataclass

from fsr.common.requests.sampling_limits import check_sampling
from fsr.v1 import types_pb2

__all__ = ["Sampling"]


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
    top_logprobs: int = 0

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
            top_logprobs=message.top_logprobs,
        )

    @property
    def is_argmax(self) -> bool:
        """Whether the largest logit is always chosen."""
        return self.temperature == 0 and self.repetition_penalty == 1
