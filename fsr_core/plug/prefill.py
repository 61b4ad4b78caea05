"""The inputs of a live model for a batch of shorter prompts: ids, mask, and the inputs of its language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsr_core.backbones.prompts import Prompt

__all__ = ["Prefill"]


@dataclass(frozen=True)
class Prefill:
    """A batch of prompts, padded on the left to one length ``L``.

    input_ids, attention_mask  [B, L]
    embeds                     [B, L, D]
    positions                  [3, B, L], or None if the model counts positions itself
    """

    input_ids: Tensor
    attention_mask: Tensor
    embeds: Tensor
    positions: Tensor | None
    prompts: tuple[Prompt, ...]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], pad: int, multi_axis: bool) -> Prefill:
        """A batch of these prompts. `pad` is the padding's token id; `multi_axis`: the model needs positions."""
        longest = max(len(prompt.token_ids) for prompt in prompts)
        first = prompts[0].inputs_embeds
        device = first.device
        ids = torch.full((len(prompts), longest), pad, device=device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
        embeds = first.new_zeros(len(prompts), longest, first.shape[1])
        positions = torch.zeros(3, len(prompts), longest, dtype=torch.int64, device=device)
        for i, prompt in enumerate(prompts):
            span = slice(longest - len(prompt.token_ids), longest)
            ids[i, span], mask[i, span], embeds[i, span] = prompt.token_ids.to(device), 1, prompt.inputs_embeds
            if prompt.position_ids is not None:
                positions[:, i, span] = prompt.position_ids
        return cls(ids, mask, embeds, positions if multi_axis else None, tuple(prompts))

    @property
    def length(self) -> int:
        """Tokens of each padded prompt, ``L``."""
        return self.input_ids.shape[1]

    def inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a forward pass, with the prompts' embeddings and positions put in.

        A pass may cover the whole prompt, a part of it, or generated tokens. Without a cache, or with speculative
        decoding, it may cover the prompt and tokens after it. Rows may be repeated for beams.
        """
        cache, embeds = kwargs.get("past_key_values"), kwargs["inputs_embeds"]
        start = cache.get_seq_length() if cache is not None else 0
        repeats, stop = len(embeds) // len(self.prompts), start + embeds.shape[1]
        if self.positions is not None:
            steps = torch.arange(self.length, max(stop, self.length), device=embeds.device) - self.length
            after = [steps + prompt.next_position for prompt in self.prompts]
            later = torch.stack(after).expand(3, -1, -1) if len(steps) else self.positions[..., :0]
            all_positions = torch.cat([self.positions, later], dim=2)[..., start:stop]
            kwargs = kwargs | {"position_ids": all_positions.repeat_interleave(repeats, dim=1)}
        if start >= self.length:
            return kwargs
        prompt_part = self.embeds[:, start:stop].repeat_interleave(repeats, dim=0).to(embeds)
        kwargs = kwargs | {"inputs_embeds": torch.cat([prompt_part, embeds[:, prompt_part.shape[1] :]], dim=1)}
        if any(prompt.deepstack is not None for prompt in self.prompts):
            kwargs |= self._deepstack(slice(start, stop), repeats)
        return kwargs

    def _deepstack(self, part: slice, repeats: int) -> dict[str, Any]:
        """The arguments for the DeepStack features of the visual tokens in a part of the padded prompts."""
        masks, rows = [], []
        for prompt in self.prompts:
            mask = torch.zeros(max(self.length, part.stop), dtype=torch.bool)
            mask[self.length - len(prompt.visual_mask) : self.length] = prompt.visual_mask
            before, count = int(mask[: part.start].sum()), int(mask[part].sum())
            masks += [mask[part]] * repeats
            if prompt.deepstack is not None:
                rows += [prompt.deepstack[:, before : before + count]] * repeats
        deep = torch.cat(rows, dim=1)
        return {"visual_pos_masks": torch.stack(masks).to(deep.device), "deepstack_visual_embeds": list(deep)}
