"""From running sequences to the tensors of one forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fsr.decoder.engines.base import Generation
from fsr.decoder.engines.transformers.kv_slots import SlotLease
from fsr.decoder.engines.transformers.row_attention import Row
from fsr_core.backbones import LanguageDecoder, Prompt

__all__ = ["ForwardInputs", "RunningSequence", "forward_inputs"]


@dataclass(kw_only=True)
class RunningSequence:
    """Prompt and answer of one request in the running batch.

    Attributes:
        lease: its slots in the KV pool.
        max_answer: largest number of answer tokens.
        tokens: of the answer so far, those of earlier replicas included.
        to_prefill: number of tokens to prefill: those of the prompt and those of earlier replicas.
        answer_position: rotary position of the answer's first token.
        started: when it joined the batch, by `time.monotonic`.
        prefill_seconds: from `started` to the first token; 0 before that.
    """

    generation: Generation
    lease: SlotLease
    max_answer: int
    tokens: list[int]
    to_prefill: int = field(init=False)
    answer_position: int = field(init=False)
    started: float = field(default_factory=time.monotonic)
    prefill_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.to_prefill = self.prompt_length + len(self.tokens)
        self.answer_position = self.generation.prompt.next_position

    @property
    def filled(self) -> int:
        """Number of tokens whose keys and values are in the pool."""
        return self.lease.filled

    @property
    def prompt_length(self) -> int:
        return len(self.generation.prompt.token_ids)

    @property
    def left_to_prefill(self) -> int:
        """Number of tokens."""
        return max(0, self.to_prefill - self.filled)

    @property
    def prefilled(self) -> bool:
        return not self.left_to_prefill

    def seen(self) -> Tensor:
        """Tokens of prompt and answer so far, ``[n]``, if a repetition penalty looks at them; else ``[0]``."""
        if self.generation.sampling.repetition_penalty == 1:
            return torch.empty(0, dtype=torch.int64)
        return torch.cat([self.generation.prompt.token_ids.cpu(), torch.tensor(self.tokens, dtype=torch.int64)])


@dataclass
class ForwardInputs:
    """A forward pass: its rows, the slots [T] for its new tokens, and the model's arguments."""

    rows: list[Row]
    new_slots: Tensor
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The new tokens of one sequence: places in its prompt, then places in its answer."""

    sequence: RunningSequence
    in_prompt: range
    in_answer: range

    @classmethod
    def of(cls, sequence: RunningSequence, count: int) -> _Chunk:
        first, length = sequence.filled, sequence.prompt_length
        in_answer = range(max(0, first - length), max(0, first + count - length))
        return cls(sequence, range(min(first, length), min(first + count, length)), in_answer)

    @property
    def prompt(self) -> Prompt:
        return self.sequence.generation.prompt


def forward_inputs(
    sequences: Sequence[RunningSequence], counts: Sequence[int], model: LanguageDecoder
) -> ForwardInputs:
    """A pass over the next `counts[i]` tokens of each sequence i, of its prompt or its answer, one after another."""
    chunks = [_Chunk.of(sequence, count) for sequence, count in zip(sequences, counts, strict=True)]
    ends = list(accumulate(counts))
    rows = [
        Row(start=end - count, count=count, past=sequence.filled, slot=sequence.lease.first)
        for sequence, count, end in zip(sequences, counts, ends, strict=True)
    ]
    slots = [slot for row in rows for slot in range(row.slot + row.past, row.slot + row.past + row.count)]
    positions = _positions(chunks)
    arguments = {
        "inputs_embeds": _embeds(chunks, model).unsqueeze(0),
        "position_ids": (positions if len(positions) == 1 else positions.unsqueeze(1)).to(model.device),
        "logits_to_keep": torch.tensor(ends, device=model.device) - 1,
    }
    return ForwardInputs(rows, torch.tensor(slots, device=model.device), arguments | _deepstack(chunks, model))


def _embeds(chunks: Sequence[_Chunk], model: LanguageDecoder) -> Tensor:
    """Embeddings [T, D] of all new tokens."""
    ids = [chunk.sequence.tokens[place] for chunk in chunks for place in chunk.in_answer]
    answers = model.embed(torch.tensor(ids, dtype=torch.int64))
    if not any(chunk.in_prompt for chunk in chunks):
        return answers
    parts: list[Tensor] = []
    for chunk, answer in zip(chunks, answers.split([len(chunk.in_answer) for chunk in chunks]), strict=True):
        parts += [chunk.prompt.inputs_embeds[chunk.in_prompt.start : chunk.in_prompt.stop], answer]
    return torch.cat(parts)


def _positions(chunks: Sequence[_Chunk]) -> Tensor:
    """Rotary positions [axes, T] of all new tokens, on the CPU."""
    numbers = [chunk.sequence.answer_position + place for chunk in chunks for place in chunk.in_answer]
    axes = max(1 if chunk.prompt.position_ids is None else len(chunk.prompt.position_ids) for chunk in chunks)
    answers = torch.tensor(numbers, dtype=torch.int64).expand(axes, -1)  # text: the same number on each axis
    if not any(chunk.in_prompt for chunk in chunks):
        return answers
    parts: list[Tensor] = []
    for chunk, answer in zip(chunks, answers.split([len(chunk.in_answer) for chunk in chunks], 1), strict=True):
        first, last, own = chunk.in_prompt.start, chunk.in_prompt.stop, chunk.prompt.position_ids
        own = torch.arange(first, last) if own is None else own[:, first:last].cpu()
        parts += [own.expand(axes, -1), answer]
    return torch.cat(parts, 1)


def _deepstack(chunks: Sequence[_Chunk], model: LanguageDecoder) -> dict[str, Any]:
    """What the first blocks add at the visual tokens of this pass; empty if there is nothing to add."""
    masks, features = [], []
    for chunk in chunks:
        places = slice(chunk.in_prompt.start, chunk.in_prompt.stop)
        mask = torch.zeros(len(chunk.in_prompt) + len(chunk.in_answer), dtype=torch.bool)
        if chunk.prompt.deepstack is not None and chunk.in_prompt:
            visual = chunk.prompt.visual_mask[places]
            mask[: len(visual)] = visual
            before = int(chunk.prompt.visual_mask[: places.start].sum())
            features.append(chunk.prompt.deepstack[:, before : before + int(visual.sum())])
        masks.append(mask)
    if not any(added.shape[1] for added in features):
        return {}
    return {
        "visual_pos_masks": torch.cat(masks).unsqueeze(0).to(model.device),
        "deepstack_visual_embeds": list(torch.cat(features, 1).to(model.device)),
    }
