"""The visual tokens of one compressed image in numbers, as gateway and encoder count them in their metrics."""

from __future__ import annotations

from dataclasses import dataclass

from fsr.v1 import types_pb2

__all__ = ["TokenCounts", "count_tokens"]


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """All in tokens: source = kept + merged + dropped."""

    source: int  # before compression
    kept: int
    kept_by_stage: dict[str, int]  # of the kept ones; stages "focus" and "scan"
    merged: int  # into a kept one
    dropped: int  # neither kept nor merged
    focus_wanted: int  # K_F that the evidence asked for, before the budget's clamp; 0 for a method without focus set
    focus_kept: int  # K_F after the clamp


def count_tokens(image: types_pb2.CompressedImage) -> TokenCounts:
    """The numbers of one image."""
    kept = len(image.index)
    return TokenCounts(
        source=image.source_tokens,
        kept=kept,
        kept_by_stage={"focus": image.focus_count, "scan": kept - image.focus_count},
        merged=image.merged_count,
        dropped=image.source_tokens - kept - image.merged_count,
        focus_wanted=image.focus_wanted,
        focus_kept=image.focus_count,
    )
