"""Puts visual rows into the embedded text, and gives every row its rotary position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fsr_core.backbones.prompts import KeptImage, Prompt

__all__ = ["splice"]


def splice(
    ids: Tensor,
    blocks: Sequence[KeptImage],
    placeholders: Sequence[int],
    embed: Callable[[Tensor], Tensor],
    multi_axis: bool,
) -> Prompt:
    """The prompt in which the rows of the i-th block replace the i-th placeholder.

    With `multi_axis` positions (M-RoPE) a text token counts one on. A block's tokens keep their own (t, h, w), counted
    from the end of the text before the block. The text after the block starts past its whole extent, whichever tokens
    were kept.

    Args:
        ids: ``[n]`` token ids with one placeholder for each block.
        blocks: features ``[K, D]`` in the dtype and on the device of the embeddings.
        placeholders: token ids that stand for visual blocks.
        embed: maps token ids ``[n]`` to embeddings ``[n, D]``.
        multi_axis: whether the language model takes ``[3, L]`` positions.
    """
    places = torch.isin(ids, torch.tensor(placeholders)).nonzero().flatten().tolist()
    embeds = embed(ids)
    rows, tokens, masks, positions, deepstack = [], [], [], [], []
    start, position = 0, 0

    def add_text(stop: int) -> None:
        nonlocal start, position
        count = stop - start
        rows.append(embeds[start:stop])
        tokens.append(ids[start:stop])
        masks.append(torch.zeros(count, dtype=torch.bool))
        positions.append(torch.arange(position, position + count).expand(3, count))
        start, position = stop, position + count

    for place, block in zip(places, blocks, strict=True):
        add_text(place)
        kept = len(block.features)
        rows.append(block.features)
        tokens.append(ids[place].expand(kept))
        masks.append(torch.ones(kept, dtype=torch.bool))
        start = place + 1
        if multi_axis and block.positions is not None and block.grid is not None:
            positions.append(block.positions.cpu().T + position)
            position += max(block.grid[1:])
        if block.deepstack is not None:
            deepstack.append(block.deepstack)
    add_text(len(ids))
    return Prompt(
        inputs_embeds=torch.cat(rows),
        token_ids=torch.cat(tokens),
        visual_mask=torch.cat(masks),
        position_ids=torch.cat(positions, dim=1).to(embeds.device) if multi_axis else None,
        deepstack=torch.cat(deepstack, dim=1) if deepstack else None,
    )
