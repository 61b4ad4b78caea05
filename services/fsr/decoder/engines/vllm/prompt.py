"""A prompt and the emitted tokens after it, in the form that vLLM takes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from vllm.inputs import EmbedsPrompt, mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from fsr.decoder.engines.base import Generation
from fsr.decoder.engines.vllm.multi_axis import MODALITY
from fsr.decoder.engines.vllm.visual_items import VisualItem, leading_jumps, visual_items

__all__ = ["engine_prompt"]


def engine_prompt(generation: Generation) -> Any:
    """What `AsyncLLM.generate` takes: a dict with ``prompt_token_ids``."""
    return _mixed(generation) if generation.prompt.position_ids is None else _with_items(generation)


def _mixed(generation: Generation) -> EmbedsPrompt:
    """Token ids for text, embeddings for visual tokens; vLLM counts the positions."""
    prompt, emitted = generation.prompt, generation.emitted
    # A row for every token; vLLM does not read the rows of token ids.
    padding = torch.zeros(len(emitted), prompt.inputs_embeds.shape[1], dtype=prompt.inputs_embeds.dtype)
    mixed = EmbedsPrompt(
        prompt_embeds=torch.cat([prompt.inputs_embeds, padding]),
        prompt_token_ids=[*prompt.token_ids.tolist(), *emitted],
        prompt_is_token_ids=[*(~prompt.visual_mask).tolist(), *[True] * len(emitted)],
    )
    if generation.cache_salt:
        mixed["cache_salt"] = generation.cache_salt
    return mixed


def _with_items(generation: Generation) -> Any:
    """Token ids, and an item for each run of visual tokens; the items say the positions."""
    ids = [*generation.prompt.token_ids.tolist(), *generation.emitted]
    items, salt = visual_items(generation.prompt), generation.cache_salt
    early = leading_jumps(items)
    if early:
        salt = hashlib.sha256(f"{early} {salt}".encode()).hexdigest()
    if not items:
        return tokens_input(ids, cache_salt=salt or None)
    places = [PlaceholderRange(offset=item.placed.offset, length=len(item.rows)) for item in items]
    return mm_input(
        ids,
        MultiModalKwargsItems({MODALITY: [_keywords(item) for item in items]}),
        {MODALITY: [item.digest() for item in items]},
        {MODALITY: places},
        cache_salt=salt or None,
    )


def _keywords(item: VisualItem) -> MultiModalKwargsItem:
    on_device, on_cpu = MultiModalBatchedField(), MultiModalBatchedField(keep_on_cpu=True)
    return MultiModalKwargsItem(
        {
            "rows": MultiModalFieldElem(data=item.rows, field=on_device),
            "positions": MultiModalFieldElem(data=item.placed.positions, field=on_cpu),
            "jumps": MultiModalFieldElem(data=item.placed.jumps, field=on_cpu),
        }
    )
