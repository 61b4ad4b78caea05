"""The text side of CLIP's joint image-text space, for the relevance of a patch to an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPTextModel

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.weights import Placement, materialise, read_tensors
from fsr_core.backbones.vision.token_ids import token_ids

__all__ = ["ClipText", "known_clip"]

_PROJECTIONS = ("text_projection.weight", "visual_projection.weight")
_LARGE = "openai/clip-vit-large-patch14-336"
_KNOWN = {
    f"llava-hf/{name}-hf": _LARGE
    for name in (
        "llava-1.5-7b",
        "llava-1.5-13b",
        "llava-v1.6-vicuna-7b",
        "llava-v1.6-vicuna-13b",
        "llava-v1.6-mistral-7b",
        "llava-v1.6-34b",
    )
}


def known_clip(name: str, folder: Path | None) -> str:
    """The CLIP checkpoint of a LLaVA: its own `clip` folder, else the hub id that the LLaVA is known to be made from.

    Raises ValueError if neither is known.
    """
    if folder is not None and (folder / "clip").is_dir():
        return str(folder / "clip")
    if name in _KNOWN:
        return _KNOWN[name]
    raise ValueError(
        f"clip: no CLIP text side is known for {name!r}; name the checkpoint that its vision tower comes from (for"
        f" LLaVA-1.5 and 1.6 {_LARGE}, or a folder with it), or 'none' to go without relevance"
    )


def _rename(stored: str) -> str | None:
    if stored in _PROJECTIONS:
        return stored
    return stored.removeprefix("text_model.") if stored.startswith("text_model.") else None


class ClipText:
    """Text tower and joint projections of a CLIP checkpoint; its vision tower is not loaded.

    `visual_projection` [P, Dv] takes patches of the vision tower that belongs to this CLIP.
    """

    def __init__(self, model: str, place: Placement) -> None:
        checkpoint = Checkpoint.open(model)
        if not isinstance(checkpoint.config, CLIPConfig):
            raise ValueError(f"clip: {model} is a {checkpoint.config.model_type!r} checkpoint; name a CLIP one")
        tensors = read_tensors(checkpoint.folder, _rename, place)
        lacking = [name for name in _PROJECTIONS if name not in tensors]
        if lacking:
            raise ValueError(f"clip: {model} lacks {lacking[0]}; name a whole CLIP checkpoint, not one tower")
        self.text_projection, self.visual_projection = (tensors.pop(name) for name in _PROJECTIONS)
        config: Any = checkpoint.config.text_config
        self.tower = materialise(CLIPTextModel, config, tensors, place.device, "CLIP text tower")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder)
        except Exception as error:  # the library and its Rust parser raise many kinds for damaged files
            raise ValueError(f"clip: the tokenizer of {model} cannot be read ({error})") from error
        self._ids = token_ids(self.tokenizer)
        self.chunk_length = config.max_position_embeddings - 2  # without BOS and EOS
        self.device = place.device

    def patches(self, tower: Any, hidden: Tensor) -> Tensor:
        """Patches in the joint space: [..., P] fp32, rows of unit length.

        `hidden` [..., Dv] are patches of the tower that belongs to this CLIP, before the tower's last layer norm.
        """
        normed = getattr(tower, "vision_model", tower).post_layernorm(hidden)
        if normed.shape[-1] != self.visual_projection.shape[1]:
            widths = f"{self.visual_projection.shape[1]} wide, the model's {normed.shape[-1]}"
            raise ValueError(f"clip: its vision tower is {widths}; name the CLIP that the model is made from")
        return F.normalize((normed @ self.visual_projection.T).float(), dim=-1)

    def chunks(self, text: str) -> int:
        return len(self._pieces(text))

    def _pieces(self, text: str) -> list[tuple[int, ...]]:
        """The token ids of each chunk of a text. Raises ValueError."""
        ids = self._ids(text)
        if not ids:
            raise ValueError("instruction: is blank; ask a question")
        return [ids[start : start + self.chunk_length] for start in range(0, len(ids), self.chunk_length)]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """One [chunks, P] fp32 tensor per text, rows of unit length; a chunk is at most 75 tokens, BOS and EOS."""
        tokenizer = self.tokenizer
        chunks: list[list[int]] = []
        counts: list[int] = []
        for text in texts:
            pieces = self._pieces(text)
            chunks += [[tokenizer.bos_token_id, *piece, tokenizer.eos_token_id] for piece in pieces]
            counts.append(len(pieces))
        ends = torch.tensor([len(chunk) - 1 for chunk in chunks], device=self.device)
        longest = int(ends.max()) + 1
        ids = torch.full((len(chunks), longest), tokenizer.eos_token_id, device=self.device)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = torch.tensor(chunk, device=self.device)
        # Attention is causal, so padding after a chunk's EOS does not change the hidden state at that EOS.
        hidden = self.tower(input_ids=ids).last_hidden_state
        at_end = hidden[torch.arange(len(chunks), device=self.device), ends]
        return list(F.normalize((at_end @ self.text_projection.T).float(), dim=-1).split(counts))
