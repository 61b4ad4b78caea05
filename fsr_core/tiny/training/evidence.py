"""Teaches the language model where to look: two heads learn to attend to the things that a question names.

To find the one thing of a colour and a shape among twelve is a conjunction, which answers alone teach very slowly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

LAYER = 2  # of four: those below gather the words of the question, that above reads the answer out
HEADS = 2  # for the things that are named, and for the second of two that are compared


class Asked(NamedTuple):
    """One question in a packed sequence. `at` are the places after the visual tokens where its answer is predicted."""

    kind: str
    at: tuple[int, ...]
    things: tuple[int, ...]

    def by_head(self) -> tuple[tuple[int, ...], ...]:
        """The things that each of the heads should find."""
        return (self.things[:1], self.things[1:]) if self.kind == "relation" else (self.things, ())


class Evidence:
    """The loss of the attention of some heads; it sees what the language model's layer gets in its latest pass."""

    def __init__(self, language: Any) -> None:
        self.attention: Any = language.layers[LAYER].self_attn
        self.inputs: dict[str, Any] = {}
        self.attention.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.inputs = named

    def __call__(self, visual: slice, owner: Tensor, asked: list[list[Asked]]) -> Tensor:
        """Cross-entropy of attention over the visual tokens against the named things' tokens, over all questions.

        visual  where in the sequence the visual tokens stand
        owner   index of the thing that each of them shows, -1 for none; [b, n]
        """
        wanted = [
            (row, place, head, things)
            for row, questions in enumerate(asked)
            for question in questions
            for head, things in enumerate(question.by_head())
            if things
            for place in question.at
        ]
        hidden, (cos, sin) = self.inputs["hidden_states"], self.inputs["position_embeddings"]
        width = self.attention.head_dim
        queries = self.attention.q_proj(hidden)[..., : HEADS * width].unflatten(-1, (HEADS, width)).transpose(1, 2)
        keys = self.attention.k_proj(hidden)[..., : HEADS * width].unflatten(-1, (HEADS, width)).transpose(1, 2)
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        rows, places, heads = (torch.tensor([one[i] for one in wanted]) for i in range(3))
        chosen = queries[rows, heads, visual.stop + places]
        logits = torch.einsum("td,tnd->tn", chosen, keys[rows, heads, visual]) * width**-0.5
        on = torch.stack([torch.isin(owner[row], torch.tensor(things)) for row, _, _, things in wanted]).float()
        seen = on.sum(1) > 0
        shares = on[seen] / on[seen].sum(1, keepdim=True)
        return -(shares * F.log_softmax(logits[seen], dim=1)).sum(1).mean()
