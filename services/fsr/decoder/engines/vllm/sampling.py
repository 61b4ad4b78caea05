"""Our sampling inside vLLM: the same token for the same logits, seed and position as in every other engine.

vLLM's own generators count draws, so a request that continues the tokens of another replica would draw other numbers.
This processor chooses the token with :func:`fsr.decoder.sampling.choose` and masks all other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from fsr.decoder.sampling import Sampling, choose

__all__ = ["ChosenToken"]


@dataclass
class _SequenceState:
    sampling: Sampling
    step: int  # answer tokens that other replicas have generated
    seen: list[int]  # tokens of the prompt and of those replicas, if the sampling looks at them
    output: list[int]  # vLLM's own list; it grows


class ChosenToken(LogitsProcessor):
    """Applies to requests that carry our sampling options; the others are greedy."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._states: dict[int, _SequenceState] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._states.pop(index, None)
        for index, params, _, output in batch_update.added:
            extra = params.extra_args or {}
            self._states.pop(index, None)
            if "sampling" in extra:
                options = extra["sampling"] | {"stop": tuple(extra["sampling"]["stop"])}
                seen = list(extra.get("seen", ()))
                self._states[index] = _SequenceState(Sampling(**options), extra["step"], seen, output)
        for first, second, direction in batch_update.moved:
            from_first, from_second = self._states.pop(first, None), self._states.pop(second, None)
            if from_first is not None:
                self._states[second] = from_first
            if direction == MoveDirectionality.SWAP and from_second is not None:
                self._states[first] = from_second

    def apply(self, logits: Tensor) -> Tensor:
        for index, state in self._states.items():
            seen = torch.tensor([*state.seen, *state.output], dtype=torch.long)
            token = choose(logits[index], state.sampling, seen, state.step + len(state.output))
            logits[index] = -torch.inf
            logits[index, token] = 0.0
        return logits
