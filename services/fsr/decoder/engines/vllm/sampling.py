"""Our sampling inside vLLM: the same token for the same logits, seed and position as in every other engine.

vLLM's own generators count draws, so a request that goes on from another replica's tokens would draw other numbers.
This processor chooses the token with :func:`fsr.decoder.sampling.choose` and leaves no other to vLLM.
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
class _Row:
    sampling: Sampling
    step: int  # tokens of the answer before this request
    seen: list[int]  # tokens of the prompt and those, where the sampling looks at them
    output: list[int]  # vLLM's own list, which grows


class ChosenToken(LogitsProcessor):
    """Applies to the requests that carry sampling options of ours; the rest is greedy."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            own = params.extra_args or {}
            self._rows.pop(index, None)
            if "sampling" in own:
                options = own["sampling"] | {"stop": tuple(own["sampling"]["stop"])}
                self._rows[index] = _Row(Sampling(**options), own["step"], list(own.get("seen", ())), output)
        for first, second, direction in batch_update.moved:
            from_first, from_second = self._rows.pop(first, None), self._rows.pop(second, None)
            if from_first is not None:
                self._rows[second] = from_first
            if direction == MoveDirectionality.SWAP and from_second is not None:
                self._rows[first] = from_second

    def apply(self, logits: Tensor) -> Tensor:
        for index, row in self._rows.items():
            seen = torch.tensor([*row.seen, *row.output], dtype=torch.long)
            token = choose(logits[index], row.sampling, seen, row.step + len(row.output))
            logits[index] = -torch.inf
            logits[index, token] = 0.0
        return logits
