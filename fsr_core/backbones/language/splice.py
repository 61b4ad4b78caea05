"""Visual rows into the embedded text, and everything's rotary position."""

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
    """The prompt that puts the rows of the i-th block where the i-th placeholder stands.

    With `multi_axis` positions (M-RoPE) text counts on; the tokens of a block stand at its own (t, h, w) after the
    text before it, whichever of them were kept, and what follows starts past its whole extent.

    Args:
        ids: ``[n]`` token ids with one placeholder a block.
        blocks: their features are ``[K, D]`` in the dtype and on the device of the embeddings.
        placeholders: token ids that stand for visual blocks.
        embed: token ids ``[n]`` to embeddings ``[n, D]``.
        multi_axis: whether the language model wants ``[3, L]`` positions.
    """
    places = torch.isin(ids, torch.tensor(placeholders)).nonzero().flatten().tolist()
    embeds = embed(ids)
    rows, tokens, masks, positions, deep = [], [], [], [], []
    at, position = 0, 0

    def text(upto: int) -> None:
        nonlocal at, position
        count = upto - at
        rows.append(embeds[at:upto])
        tokens.append(ids[at:upto])
        masks.append(torch.zeros(count, dtype=torch.bool))
        positions.append(torch.arange(position, position + count).expand(3, count))
        at, position = upto, position + count

    for place, block in zip(places, blocks, strict=True):
        text(place)
        kept = len(block.features)
        rows.append(block.features)
        tokens.append(ids[place].expand(kept))
        masks.append(torch.ones(kept, dtype=torch.bool))
        at = place + 1
        if multi_axis and block.positions is not None and block.grid is not None:
            positions.append(block.positions.cpu().T + position)
            position += max(block.grid[1:])
        if block.deepstack is not None:
            deep.append(block.deepstack)
    text(len(ids))
    return Prompt(
        inputs_embeds=torch.cat(rows),
        token_ids=torch.cat(tokens),
        visual_mask=torch.cat(masks),
        position_ids=torch.cat(positions, dim=1).to(embeds.device) if multi_axis else None,
        deepstack=torch.cat(deep, dim=1) if deep else None,
    )
