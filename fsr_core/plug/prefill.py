"""What a live model is given for a batch of shorter prompts: ids, mask, and the language model's own inputs."""

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
    positions                  [3, B, L], or None where the model counts by itself
    """

    input_ids: Tensor
    attention_mask: Tensor
    embeds: Tensor
    positions: Tensor | None
    prompts: tuple[Prompt, ...]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], pad: int, multi_axis: bool) -> Prefill:
        """A batch of them; `pad` is the token id that stands for padding, `multi_axis` whether positions are told."""
        longest = max(len(prompt.token_ids) for prompt in prompts)
        first = prompts[0].inputs_embeds
        device = first.device
        ids = torch.full((len(prompts), longest), pad, device=device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
        embeds = first.new_zeros(len(prompts), longest, first.shape[1])
        positions = torch.zeros(3, len(prompts), longest, dtype=torch.int64, device=device)
        for i, prompt in enumerate(prompts):
            own = slice(longest - len(prompt.token_ids), longest)
            ids[i, own], mask[i, own], embeds[i, own] = prompt.token_ids.to(device), 1, prompt.inputs_embeds
            if prompt.position_ids is not None:
                positions[:, i, own] = prompt.position_ids
        return cls(ids, mask, embeds, positions if multi_axis else None, tuple(prompts))

    @property
    def length(self) -> int:
        return self.input_ids.shape[1]

    def inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the language model's forward pass with the prompt's own embeddings and positions.

        A pass may be the whole prompt, a piece of it, or generated tokens; without a cache, or where tokens are guessed
        ahead, the prompt with tokens after it. Rows may be repeated for beams.
        """
        cache, given = kwargs.get("past_key_values"), kwargs["inputs_embeds"]
        start = cache.get_seq_length() if cache is not None else 0
        times, stop = len(given) // len(self.prompts), start + given.shape[1]
        if self.positions is not None:
            steps = torch.arange(self.length, max(stop, self.length), device=given.device) - self.length
            after = [steps + prompt.next_position for prompt in self.prompts]
            later = torch.stack(after).expand(3, -1, -1) if len(steps) else self.positions[..., :0]
            whole = torch.cat([self.positions, later], dim=2)[..., start:stop]
            kwargs = kwargs | {"position_ids": whole.repeat_interleave(times, dim=1)}
        if start >= self.length:
            return kwargs
        own = self.embeds[:, start:stop].repeat_interleave(times, dim=0).to(given)
        kwargs = kwargs | {"inputs_embeds": torch.cat([own, given[:, own.shape[1] :]], dim=1)}
        if any(prompt.deepstack is not None for prompt in self.prompts):
            kwargs |= self._deepstack(slice(start, stop), times)
        return kwargs

    def _deepstack(self, part: slice, times: int) -> dict[str, Any]:
        masks, rows = [], []
        for prompt in self.prompts:
            mask = torch.zeros(max(self.length, part.stop), dtype=torch.bool)
            mask[self.length - len(prompt.visual_mask) : self.length] = prompt.visual_mask
            before, count = int(mask[: part.start].sum()), int(mask[part].sum())
            masks += [mask[part]] * times
            if prompt.deepstack is not None:
                rows += [prompt.deepstack[:, before : before + count]] * times
        deep = torch.cat(rows, dim=1)
        return {"visual_pos_masks": torch.stack(masks).to(deep.device), "deepstack_visual_embeds": list(deep)}
