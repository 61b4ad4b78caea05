"""From running sequences to the tensors of one forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fsr.decoder.engines.base import Generation
from fsr.decoder.engines.transformers.kv_cache import BatchLayout
from fsr.decoder.engines.transformers.kv_slots import SlotLease
from fsr_core.backbones import LanguageDecoder

__all__ = ["ForwardInputs", "RunningSequence", "decode_inputs", "prefill_inputs"]


@dataclass(kw_only=True)
class RunningSequence:
    """Prompt and answer of one request in the running batch.

    Attributes:
        lease: its slots in the KV pool.
        max_answer: largest number of answer tokens.
        tokens: of the answer so far, those of earlier replicas included.
        slots: those of `lease`, as a tensor on the CPU.
        filled: number of tokens whose keys and values are in the pool.
        to_prefill: number of tokens to prefill: those of the prompt and those of earlier replicas.
        answer_position: rotary position of the answer's first token.
        started: when it joined the batch, by `time.monotonic`.
        prefill_seconds: from `started` to the first token; 0 before that.
    """

    generation: Generation
    lease: SlotLease
    max_answer: int
    tokens: list[int]
    slots: Tensor = field(init=False)
    filled: int = field(init=False)
    to_prefill: int = field(init=False)
    answer_position: int = field(init=False)
    started: float = field(default_factory=time.monotonic)
    prefill_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.slots = torch.tensor(self.lease.slots)
        self.filled = self.lease.cached
        self.to_prefill = self.prompt_length + len(self.tokens)
        self.answer_position = self.generation.prompt.next_position

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
    """A forward pass: the slots that it writes and reads, and the model's arguments."""

    layout: BatchLayout
    arguments: dict[str, Any]


def decode_inputs(sequences: Sequence[RunningSequence], model: LanguageDecoder) -> ForwardInputs:
    """One new token for each sequence: the last token of its answer."""
    last = torch.tensor([sequence.tokens[-1] for sequence in sequences])
    numbers = [sequence.answer_position + sequence.filled - sequence.prompt_length for sequence in sequences]
    positions = torch.tensor(numbers).unsqueeze(1)
    prompt_positions = sequences[0].generation.prompt.position_ids
    if prompt_positions is not None:  # an answer is text, so its positions are the same on each axis
        positions = positions.expand(*prompt_positions.shape[:-1], -1, -1)
    return _inputs(sequences, [1] * len(sequences), model.embed(last).unsqueeze(1), positions, model)


def prefill_inputs(
    sequences: Sequence[RunningSequence], counts: Sequence[int], model: LanguageDecoder
) -> ForwardInputs:
    """The next `counts[i]` tokens of sequence i's prompt and of the answer tokens that other replicas emitted."""
    embeds, positions = [], []
    for sequence, count in zip(sequences, counts, strict=True):
        first, last, length = sequence.filled, sequence.filled + count, sequence.prompt_length
        chunk = sequence.generation.prompt.inputs_embeds[first:last]
        if last > length:
            emitted = torch.tensor(sequence.tokens[max(0, first - length) : last - length])
            chunk = torch.cat([chunk, model.embed(emitted)])
        embeds.append(chunk)
        positions.append(_positions(sequence, first, count))
    if any(rows.dim() == 2 for rows in positions):
        axes = max(rows.shape[0] for rows in positions if rows.dim() == 2)
        padded = torch.stack([_pad([rows.expand(axes, -1)[axis] for rows in positions]) for axis in range(axes)])
    else:
        padded = _pad(positions)
    inputs = _inputs(sequences, counts, _pad(embeds), padded, model)
    inputs.arguments |= _deepstack(sequences, counts, model)
    return inputs


def _positions(sequence: RunningSequence, first: int, count: int) -> Tensor:
    """Rotary positions of tokens first .. first + count - 1 of prompt and answer: [count], or [3, count]."""
    prompt, length = sequence.generation.prompt, sequence.prompt_length
    if prompt.position_ids is None:
        return torch.arange(first, first + count)
    answer = sequence.answer_position + torch.arange(max(first, length), max(first + count, length)) - length
    answer = answer.expand(*prompt.position_ids.shape[:-1], -1)
    return torch.cat([prompt.position_ids.cpu()[..., first : first + count], answer], -1)


def _deepstack(sequences: Sequence[RunningSequence], counts: Sequence[int], model: LanguageDecoder) -> dict[str, Any]:
    """What the first blocks add at the visual tokens of this pass; empty if there is nothing to add."""
    masks, features = [], []
    for sequence, count in zip(sequences, counts, strict=True):
        prompt, start = sequence.generation.prompt, sequence.filled
        mask = torch.zeros(count, dtype=torch.bool)
        if prompt.deepstack is not None:
            visual = prompt.visual_mask[start : start + count]
            mask[: len(visual)] = visual
            before = int(prompt.visual_mask[:start].sum())
            features.append(prompt.deepstack[:, before : before + int(visual.sum())])
        masks.append(mask)
    if not any(added.shape[1] for added in features):
        return {}
    return {
        "visual_pos_masks": _pad(masks).to(model.device),
        "deepstack_visual_embeds": list(torch.cat(features, 1).to(model.device)),
    }


def _inputs(
    sequences: Sequence[RunningSequence],
    counts: Sequence[int],
    embeds: Tensor,
    positions: Tensor,
    model: LanguageDecoder,
) -> ForwardInputs:
    """A pass over the next `counts` tokens of the sequences; embeds [B, T, D], positions [(axes,) B, T]."""
    device, length = model.device, max(counts)
    ends = [sequence.filled + count for sequence, count in zip(sequences, counts, strict=True)]
    longest = max(ends)
    read = _pad([sequence.slots[:end] for sequence, end in zip(sequences, ends, strict=True)])
    write = torch.cat([sequence.slots[sequence.filled : end] for sequence, end in zip(sequences, ends, strict=True)])
    new = None
    if min(counts) < length:
        ranges = [torch.arange(length - count, length) + row * length for row, count in enumerate(counts)]
        new = torch.cat(ranges).to(device)
    mask = None
    if min(ends) < longest or new is not None:
        mask = (torch.arange(longest) >= longest - torch.tensor(ends).unsqueeze(1)).to(device)
    return ForwardInputs(
        BatchLayout(write.to(device), new, read.to(device), length),
        {"inputs_embeds": embeds, "position_ids": positions.to(device), "attention_mask": mask},
    )


def _pad(rows: list[Tensor]) -> Tensor:
    """Rows of different lengths as one tensor, aligned at their ends."""
    return pad_sequence(rows, batch_first=True, padding_side="left")
