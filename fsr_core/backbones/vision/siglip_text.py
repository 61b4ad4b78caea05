"""The text side of SigLIP's joint image-text space, for vision towers that come from a SigLIP checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, SiglipConfig, SiglipTextModel
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.weights import Placement, materialise, read_tensors
from fsr_core.backbones.vision.token_ids import token_ids

__all__ = ["SiglipText"]

_VISION = ("vision_model.head.", "vision_model.post_layernorm.")


def _rename(stored: str) -> str | None:
    return stored if stored.startswith(("text_model.", *_VISION)) else None


class SiglipText:
    """Text tower of a SigLIP checkpoint, and the pooling head that puts patches into the same space.

    SigLIP pools a picture by attention over its patches. The embedding of one patch is the head's output for that patch
    alone.
    """

    def __init__(self, model: str, place: Placement) -> None:
        checkpoint = Checkpoint.open(model)
        if not isinstance(checkpoint.config, SiglipConfig):
            raise ValueError(f"clip: {model} is a {checkpoint.config.model_type!r} checkpoint; name a SigLIP one")
        stored = read_tensors(checkpoint.folder, _rename, place)
        text: Any = checkpoint.config.text_config
        vision: Any = checkpoint.config.vision_config

        def under(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}

        self.tower = materialise(SiglipTextModel, text, under("text_model."), place.device, "SigLIP text tower")
        self.head = materialise(
            SiglipMultiheadAttentionPoolingHead,
            vision,
            under("vision_model.head."),
            place.device,
            "SigLIP pooling head",
        )
        norm = under("vision_model.post_layernorm.")
        if set(norm) != {"weight", "bias"}:
            raise ValueError(f"clip: {model} lacks vision_model.post_layernorm; name a whole SigLIP checkpoint")
        self.norm, self.eps = norm, vision.layer_norm_eps
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.folder)
        except Exception as error:  # the library and its Rust parser raise many kinds for damaged files
            raise ValueError(f"clip: the tokenizer of {model} cannot be read ({error})") from error
        self._ids = token_ids(self.tokenizer)
        self.length: int = text.max_position_embeddings
        self.device = place.device

    def patches(self, tower: Any, hidden: Tensor) -> Tensor:
        """Patches [..., Dv], before the tower's last layer norm, in the joint space: [..., P] fp32, unit length."""
        width = len(self.norm["weight"])
        if hidden.shape[-1] != width:
            raise ValueError(
                f"clip: its vision tower is {width} wide, the model's {hidden.shape[-1]};"
                " name the SigLIP that the model is made from"
            )
        normed = F.layer_norm(hidden, (width,), self.norm["weight"], self.norm["bias"], self.eps)
        pooled = self.head(normed.reshape(-1, 1, width))
        return F.normalize(pooled.float(), dim=-1).view(*hidden.shape[:-1], -1)

    def chunks(self, text: str) -> int:
        return len(self._pieces(text))

    def _pieces(self, text: str) -> list[tuple[int, ...]]:
        """The token ids of each chunk of a text. Raises ValueError."""
        # SigLIP was trained on lower-cased text without punctuation; its tokenizer class makes it so.
        ids = self._ids(text)
        if not ids:
            raise ValueError("instruction: has no words; ask a question")
        size = self.length - 1  # without EOS
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """One [chunks, P] fp32 tensor per text, rows of unit length.

        Chunks are padded to SigLIP's full length, as in its training.
        """
        tokenizer, chunks, counts = self.tokenizer, [], []
        for text in texts:
            pieces = self._pieces(text)
            chunks += [[*piece, tokenizer.eos_token_id] for piece in pieces]
            counts.append(len(pieces))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        ids = torch.full((len(chunks), self.length), pad, device=self.device)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = torch.tensor(chunk, device=self.device)
        pooled = self.tower(input_ids=ids).pooler_output
        return list(F.normalize(pooled.float(), dim=-1).split(counts))
