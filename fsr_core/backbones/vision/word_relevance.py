"""Relevance for families without a text tower: visual tokens against the mean of the instruction's word embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from fsr_core.backbones.checkpoints.weights import Placement, part_of, read_tensors
from fsr_core.backbones.features import ImageFeatures
from fsr_core.backbones.vision.token_ids import token_ids
from fsr_core.tokens import VisualTokens

__all__ = ["Relevance", "WordRelevance", "refuse_clip", "word_tokens"]

#: "none", as in the paper for families without a text tower, or "instruction".
Relevance = Literal["none", "instruction"]

_CHUNK = 64  # tokens; about as many as the text towers of other families read at a time


class WordRelevance:
    """Tokenizer and embedding table ``[vocabulary, D]`` of the language model."""

    def __init__(self, tokenizer: Any, table: Tensor) -> None:
        self.tokenizer, self.table = tokenizer, table
        self._ids = token_ids(tokenizer)

    @classmethod
    def load(cls, folder: Path, place: Placement) -> WordRelevance:
        """Reads both from a checkpoint's folder. Raises ValueError if the checkpoint holds no embedding table."""
        name = ("language", "embed_tokens.weight")
        tables = read_tensors(folder, lambda stored: stored if part_of(stored) == name else None, place)
        if not tables:
            raise ValueError(f"model: {folder.name} lacks embed_tokens; point at a whole vision-language checkpoint")
        return cls(AutoTokenizer.from_pretrained(folder), next(iter(tables.values())))

    @classmethod
    def of_model(cls, model: Any, processor: Any) -> WordRelevance:
        """Those of a live model of the library."""
        return cls(processor.tokenizer, model.get_input_embeddings().weight)

    def chunks(self, text: str) -> int:
        return -(-len(self._ids(text)) // _CHUNK)

    def embed(self, texts: Sequence[str]) -> list[Tensor]:
        """One [1, D] fp32 tensor per text, of unit length."""
        ids = [tensor(self._ids(text)) for text in texts]
        rows = [self.table[tokens.to(self.table.device)].float() for tokens in ids]
        return [F.normalize(row.mean(0, keepdim=True), dim=-1) for row in rows]


def word_tokens(image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
    """The input of a compressor. Relevance is the cosine of each token and the instruction ``[1, D]``, if any."""
    if instruction is None:
        return VisualTokens(image.features, image.saliency)
    return VisualTokens(image.features, image.saliency, F.normalize(image.features.float(), dim=-1) @ instruction[0])


def refuse_clip(clip: str | None, family: str) -> None:
    """Raises ValueError for a CLIP checkpoint that a family without a text tower cannot use."""
    if clip not in (None, "none"):
        raise ValueError(f"clip: {family} has no CLIP text side; leave it out, or use the option relevance=instruction")
