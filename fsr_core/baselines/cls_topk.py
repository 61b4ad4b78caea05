"""FasterVLM (arXiv 2412.01818, first version): the tokens that the class token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fsr_core.one_by_one import OneByOne, by_falling, kept
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["ClsTopK"]


@dataclass(frozen=True)
class ClsTopK(OneByOne):
    """Keeps the K tokens of the highest `saliency`, ties by index (the paper's re-ranking by [CLS] attention).

    Where the paper averages over the heads of the tower's last block but one, the backbone already did. The question
    plays no part. Departure: the paper keeps what exceeds a threshold, which may be fewer on ties; here exactly K.
    """

    name: ClassVar[str] = "cls_topk"

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        return kept(sample, focus=by_falling(sample.saliency)[:k], priority=sample.saliency)
