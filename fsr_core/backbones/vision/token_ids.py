"""Token ids of instructions. An encoder counts them before it embeds them, and people ask the same questions again."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["token_ids"]

_TEXTS = 256  # that are remembered


def token_ids(tokenizer: Any) -> Callable[[str], tuple[int, ...]]:
    """A function from a text to its token ids, without BOS and EOS. It remembers the latest texts."""

    @lru_cache(_TEXTS)
    def ids_of(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    return ids_of
