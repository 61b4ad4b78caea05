"""From running requests to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fsr.decoder.engines.base import Generation
from fsr.decoder.engines.transformers.kv_cache import Layout
from fsr.decoder.engines.transformers.kv_slots import Lease
from fsr_core.backbones import LanguageDecoder

__all__ = ["Inputs", "Row", "decode_inputs", "prefill_inputs"]


@dataclass
class Row:
    """A request in the running batch.

    Attributes:
        lease, places: its places in the KV pool; the same as a tensor on the CPU.
        tokens: of the answer so far, earlier replicas' included.
        filled: tokens whose keys and values are in the pool.
        pending: tokens to prefill: the prompt and what other replicas had said.
        answer_position: rotary position of the answer's first token.
        room: most tokens of the answer.
    """

    generation: Generation
    lease: Lease
    room: int
    tokens: list[int]
    places: Tensor = field(init=False)
    filled: int = field(init=False)
    pending: int = field(init=False)
    answer_position: int = field(init=False)

    def __post_init__(self) -> None:
        self.places = torch.tensor(self.lease.places)
        self.filled = self.lease.cached
        self.pending = len(self.generation.prompt.token_ids) + len(self.tokens)
        self.answer_position = self.generation.prompt.next_position

    @property
    def prefilled(self) -> bool:
        return self.filled >= self.pending


@dataclass
class Inputs:
    """A forward pass: where it writes and reads, and the model's arguments."""

    layout: Layout
    arguments: dict[str, Any]


def decode_inputs(rows: Sequence[Row], model: LanguageDecoder) -> Inputs:
    """One new token a row: the last of its answer."""
    last = torch.tensor([row.tokens[-1] for row in rows])
    places = [row.answer_position + row.filled - len(row.generation.prompt.token_ids) for row in rows]
    positions = torch.tensor(places).unsqueeze(1)
    own = rows[0].generation.prompt.position_ids
    if own is not None:  # text counts the same on each axis
        positions = positions.expand(*own.shape[:-1], -1, -1)
    return _inputs(rows, [1] * len(rows), model.embed(last).unsqueeze(1), positions, model)


def prefill_inputs(rows: Sequence[Row], counts: Sequence[int], model: LanguageDecoder) -> Inputs:
    """The next `counts[i]` tokens of row i's prompt."""
    embeds, positions = [], []
    for row, count in zip(rows, counts, strict=True):
        prompt, first, last = row.generation.prompt, row.filled, row.filled + count
        own, length = prompt.inputs_embeds[first:last], len(prompt.token_ids)
        if last > length:  # what another replica had said
            said = torch.tensor(row.tokens[max(0, first - length) : last - length])
            own = torch.cat([own, model.embed(said)])
        embeds.append(own)
        positions.append(_positions(row, first, count))
    if any(own.dim() == 2 for own in positions):
        axes = max(own.shape[0] for own in positions if own.dim() == 2)
        stacked = torch.stack([_pad([own.expand(axes, -1)[axis] for own in positions]) for axis in range(axes)])
    else:
        stacked = _pad(positions)
    inputs = _inputs(rows, counts, _pad(embeds), stacked, model)
    inputs.arguments |= _deepstack(rows, counts, model)
    return inputs


def _positions(row: Row, first: int, count: int) -> Tensor:
    """Rotary positions of tokens first .. first + count - 1 of prompt and answer: [count], or [3, count]."""
    prompt = row.generation.prompt
    own, length = prompt.position_ids, len(prompt.token_ids)
    if own is None:
        return torch.arange(first, first + count)
    answer = row.answer_position + torch.arange(max(first, length), max(first + count, length)) - length
    answer = answer.expand(*own.shape[:-1], -1)
    return torch.cat([own.cpu()[..., first : first + count], answer], -1)


def _deepstack(rows: Sequence[Row], counts: Sequence[int], model: LanguageDecoder) -> dict[str, Any]:
    """What the first blocks add at visual places, for families that have it, of the tokens in this pass."""
    masks, features = [], []
    for row, count in zip(rows, counts, strict=True):
        prompt, chunk = row.generation.prompt, slice(row.filled, row.filled + count)
        mask = torch.zeros(count, dtype=torch.bool)
        seen = prompt.visual_mask[chunk]
        mask[: len(seen)] = seen
        if prompt.deepstack is None:
            mask[:] = False
        elif seen.any():
            before = int(prompt.visual_mask[: row.filled].sum())
            features.append(prompt.deepstack[:, before : before + int(seen.sum())])
        masks.append(mask)
    if not features:
        return {}
    return {
        "visual_pos_masks": _pad(masks).to(model.device),
        "deepstack_visual_embeds": list(torch.cat(features, 1).to(model.device)),
    }


def _inputs(
    rows: Sequence[Row], counts: Sequence[int], embeds: Tensor, positions: Tensor, model: LanguageDecoder
) -> Inputs:
    """The layout of a pass over the next `counts` tokens of the rows; embeds [B, T, D], positions [(axes,) B, T]."""
    device, fresh = model.device, max(counts)
    ends = [row.filled + count for row, count in zip(rows, counts, strict=True)]
    longest = max(ends)
    read = _pad([row.places[:end] for row, end in zip(rows, ends, strict=True)])
    write = torch.cat([row.places[row.filled : end] for row, end in zip(rows, ends, strict=True)])
    new = None
    if min(counts) < fresh:
        new = torch.cat([torch.arange(fresh - count, fresh) + at * fresh for at, count in enumerate(counts)]).to(device)
    mask = None
    if min(ends) < longest or new is not None:
        mask = (torch.arange(longest) >= longest - torch.tensor(ends).unsqueeze(1)).to(device)
    return Inputs(
        Layout(write.to(device), new, read.to(device), fresh),
        {"inputs_embeds": embeds, "position_ids": positions.to(device), "attention_mask": mask},
    )


def _pad(rows: list[Tensor]) -> Tensor:
    """Rows of different lengths as one tensor, aligned at their ends."""
    return pad_sequence(rows, batch_first=True, padding_side="left")
