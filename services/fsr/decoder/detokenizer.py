"""Token ids to text, piece by piece.

This is own code because `tokenizers.DecodeStream` raises "Invalid prefix" when bytes that are no UTF-8 follow text of
a byte-fallback tokenizer, cannot give out its last bytes, and needs a fast tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextStream"]

_REPLACEMENT = "\ufffd"


class TextStream:
    """Gives out whole characters only, and no text that can still become a stop string.

    The text depends on the tokens alone. So a stream on another replica continues exactly where the first one stopped
    once the earlier tokens are pushed. Each token decodes only the few tokens around it, however long the answer is.

    Attributes:
        stopped: whether a stop string has ended the text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = 0  # the tokens from here on are decoded, because new tokens need those before them
        self._converted = 0  # the tokens before this one have become text
        self._held = ""  # text that can still become a stop string
        self.stopped = False

    def _decode(self, first: int, last: int | None = None) -> str:
        return str(self._tokenizer.decode(self._ids[first:last], skip_special_tokens=True))

    def push(self, token: int) -> str:
        """Adds a token; returns the text that can change no more."""
        self._ids.append(token)
        old, text = self._decode(self._context, self._converted), self._decode(self._context)
        # A replacement character at the end is the first part of a character that is not complete yet.
        if text.endswith(_REPLACEMENT) or len(text) <= len(old):
            return ""
        self._context, self._converted = self._converted, len(self._ids)
        return self._release(text[len(old) :])

    def finish(self) -> str:
        """Ends the text; returns the rest of it."""
        if self.stopped:
            return ""
        old, text = self._decode(self._context, self._converted), self._decode(self._context)
        self._context = self._converted = len(self._ids)
        return self._release(text[len(old) :], final=True)

    def _release(self, piece: str, final: bool = False) -> str:
        text = self._held + piece
        end = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=-1)
        if end >= 0:
            self.stopped, self._held = True, ""
            return text[:end]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
