"""FasterVLM (arXiv 2412.01818, first version): the tokens with the most attention of the class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fsr_core.one_by_one import OneByOne, by_falling, kept
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["ClsTopK"]


@dataclass(frozen=True)
class ClsTopK(OneByOne):
    """Keeps the K tokens of the highest `saliency`, ties by index (the paper's re-ranking by [CLS] attention).

    The paper averages over the heads of the tower's second-last block; the backbone has already done so. The question
    has no influence. Departure: the paper keeps the tokens above a threshold, which may be fewer on ties; here it is
    exactly K.
    """

    name: ClassVar[str] = "cls_topk"

    def _comparisons(self, n: int, k: int) -> int:
        return 0

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        return kept(sample, focus=by_falling(sample.saliency)[:k], priority=sample.saliency)
