"""The visual tokens of a prompt as vLLM's multi-modal items: where they are, their rows, and their positions.

A text token stands one past the text token before it. Where it does not, because a picture before it takes up its
whole extent, there is a *jump*. The positions of a prompt follow from its jumps and from the visual tokens' own
positions, counted from the end of the text before them. Every item carries the jumps between its first token and the
next item, so an item and what is before it determine all positions up to the next item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsr_core.backbones import Prompt

__all__ = ["Placed", "VisualItem", "leading_jumps", "positions_of", "visual_items"]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where visual tokens of one item stand.

    Attributes:
        offset: place of the first of them in the prompt.
        positions: ``[K, 3]`` int64 (t, h, w), counted from the end of the text before the item.
        jumps: ``[m, 2]`` int64: before which token, counted from `offset`, the text moves on, and by how much. A
            picture's extent is the jump at ``K``. Only the first item of a prompt has places before `offset`.
    """

    offset: int
    positions: Tensor
    jumps: Tensor


@dataclass(frozen=True, slots=True)
class VisualItem:
    """A run of visual tokens.

    Attributes:
        placed: their places and positions.
        rows: ``[K, D * (1 + J)]``: the embedding, and beside it what each of the first ``J`` blocks adds (DeepStack).
    """

    placed: Placed
    rows: Tensor

    def digest(self) -> str:
        """The prefix cache's key: items with the same digest compute the same keys and values."""
        digest = hashlib.sha256()
        for tensor in (self.rows, self.placed.positions, self.placed.jumps):
            digest.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def visual_items(prompt: Prompt) -> list[VisualItem]:
    """The runs of visual tokens of a prompt with multi-axis positions, in order.

    The position of the answer's first token counts as a jump too: it is one past the largest of the prompt, and a
    long video may reach farther than the text after it.

    Raises:
        RuntimeError: the prompt's positions do not follow from jumps; then its layout is at fault.
    """
    if prompt.position_ids is None:
        return []
    positions, visual = prompt.position_ids.cpu(), prompt.visual_mask
    length = len(visual)
    text = torch.cat([~visual, torch.ones(1, dtype=torch.bool)])  # with the answer's first token
    counted = text.cumsum(0) - text.long()  # text tokens before each place
    places = text.nonzero().flatten()
    stands = torch.cat([positions[0], torch.tensor([prompt.next_position])])[places]
    amounts = torch.diff(stands - counted[places], prepend=torch.zeros(1, dtype=torch.int64))
    jumps = torch.stack([places, amounts], 1)[amounts != 0]
    moved = torch.zeros(length + 1, dtype=torch.int64).index_put((jumps[:, 0],), jumps[:, 1])
    relative = (positions - (counted + moved.cumsum(0))[:length]).T

    before = torch.cat([torch.zeros(1, dtype=torch.bool), visual[:-1]])
    starts = (visual & ~before).nonzero().flatten().tolist()
    rows = _rows(prompt)
    items, taken = [], 0
    for number, start in enumerate(starts):
        stop = start + int(visual[start:].long().cumprod(0).sum())
        until = starts[number + 1] if number + 1 < len(starts) else length + 1
        own = jumps[(jumps[:, 0] >= (start if number else 0)) & (jumps[:, 0] < until)]
        placed = Placed(start, relative[start:stop].contiguous(), own - torch.tensor([start, 0]))
        items.append(VisualItem(placed, rows[taken : taken + stop - start]))
        taken += stop - start
    rebuilt, following = positions_of(length, [item.placed for item in items])
    if following != prompt.next_position or not torch.equal(rebuilt, positions):
        raise RuntimeError("the prompt's positions do not follow from its text and its visual items")
    return items


def _rows(prompt: Prompt) -> Tensor:
    """``[visual places, D * (1 + J)]``."""
    rows = prompt.inputs_embeds[prompt.visual_mask.to(prompt.inputs_embeds.device)]
    return rows if prompt.deepstack is None else torch.cat([rows, *prompt.deepstack], dim=1)


def positions_of(length: int, items: Iterable[Placed]) -> tuple[Tensor, int]:
    """Positions ``[3, length]`` of a prompt and perhaps of answer tokens after it, and the next token's position."""
    text = torch.ones(length + 1, dtype=torch.bool)
    moved = torch.zeros(length + 1, dtype=torch.int64)
    own = torch.zeros(3, length, dtype=torch.int64)
    for item in items:
        place = slice(item.offset, item.offset + len(item.positions))
        text[place] = False
        own[:, place] = item.positions.T
        moved[item.offset + item.jumps[:, 0]] = item.jumps[:, 1]
    counted = text.cumsum(0) - text.long() + moved.cumsum(0)
    return own + counted[:length], int(counted[length])


def leading_jumps(items: Iterable[VisualItem]) -> list[tuple[int, int]]:
    """Jumps before the first visual token: (place, amount). A frame without kept tokens makes one.

    vLLM's key of the text there knows neither them nor any item.
    """
    for item in items:
        early = item.placed.jumps[item.placed.jumps[:, 0] < 0]
        return [(item.placed.offset + place, amount) for place, amount in early.tolist()]
    return []
