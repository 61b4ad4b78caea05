"""The text side of CLIP's joint image-text space, which tells how relevant a patch is to an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPTextModel

from fsr_core.backbones.checkpoint import Checkpoint, materialise

__all__ = ["ClipText", "known_clip"]

_PROJECTIONS = ("text_projection.weight", "visual_projection.weight")
_KNOWN = {
    "llava-hf/llava-1.5-7b-hf": "openai/clip-vit-large-patch14-336",
    "llava-hf/llava-1.5-13b-hf": "openai/clip-vit-large-patch14-336",
}


def known_clip(checkpoint: Checkpoint) -> str:
    """Where the CLIP checkpoint of a LLaVA lies: its own `clip` folder, else the one it is known to be made from."""
    if (checkpoint.folder / "clip").is_dir():
        return str(checkpoint.folder / "clip")
    if checkpoint.name in _KNOWN:
        return _KNOWN[checkpoint.name]
    raise ValueError(
        f"clip: no CLIP text side is known for {checkpoint.name!r}; name the checkpoint its vision tower comes from,"
        " or 'none' to go without relevance"
    )


def _rename(stored: str) -> str | None:
    if stored in _PROJECTIONS:
        return stored
    return stored.removeprefix("text_model.") if stored.startswith("text_model.") else None


class ClipText:
    """Text tower and joint projections of a CLIP checkpoint; its vision tower is not loaded.

    `visual_projection` is [P, Dv], for the patches of the vision tower that belongs to it.
    """

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        checkpoint = Checkpoint.open(model)
        if not isinstance(checkpoint.config, CLIPConfig):
            raise ValueError(f"clip: {model} is a {checkpoint.config.model_type!r} checkpoint; name a CLIP one")
        tensors = checkpoint.tensors(_rename, dtype, device)
        lacking = [name for name in _PROJECTIONS if name not in tensors]
        if lacking:
            raise ValueError(f"clip: {model} lacks {lacking[0]}; name a whole CLIP checkpoint, not one tower")
        self.text_projection, self.visual_projection = (tensors.pop(name) for name in _PROJECTIONS)
        tensors.pop("embeddings.position_ids", None)
        config: Any = checkpoint.config.text_config
        self.tower = materialise(CLIPTextModel, config, tensors, device)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
        self.room = config.max_position_embeddings - 2  # without BOS and EOS
        self.device = device

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """One [chunks, P] fp32 tensor a text, rows of unit length; a chunk is at most 75 tokens between BOS and EOS."""
        words = self.tokenizer
        chunks: list[list[int]] = []
        counts: list[int] = []
        for text in texts:
            ids = words(text, add_special_tokens=False, truncation=False)["input_ids"]
            if not ids:
                raise ValueError("instruction: is blank; ask a question")
            pieces = [ids[at : at + self.room] for at in range(0, len(ids), self.room)]
            chunks += [[words.bos_token_id, *piece, words.eos_token_id] for piece in pieces]
            counts.append(len(pieces))
        ends = torch.tensor([len(chunk) - 1 for chunk in chunks], device=self.device)
        longest = int(ends.max()) + 1
        ids = torch.full((len(chunks), longest), words.eos_token_id, device=self.device)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = torch.tensor(chunk, device=self.device)
        # Attention is causal, so what pads a chunk after its EOS does not reach the EOS that is read.
        hidden = self.tower(input_ids=ids).last_hidden_state
        at_end = hidden[torch.arange(len(chunks), device=self.device), ends]
        return list(F.normalize((at_end @ self.text_projection.T).float(), dim=-1).split(counts))
