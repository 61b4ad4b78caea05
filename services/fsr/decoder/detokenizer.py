"""Token ids to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextStream"]

_BROKEN = "\ufffd"


class TextStream:
    """Gives out whole characters only, and nothing that may still turn out to be the start of a stop string.

    What it has given out depends on the tokens alone, so a stream that another replica began goes on exactly where it
    stopped once the earlier tokens have been pushed. A token costs the decoding of the few tokens around it, however
    long the answer is.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._from = 0  # tokens from here on are decoded: the context that the next ones need
        self._done = 0  # tokens up to here have become text
        self._held = ""  # text that may be the start of a stop string
        self.stopped = False

    def _decode(self, first: int, last: int | None = None) -> str:
        return str(self._tokenizer.decode(self._ids[first:last], skip_special_tokens=True))

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        self._ids.append(token)
        known, text = self._decode(self._from, self._done), self._decode(self._from)
        # A replacement character at the end is the first half of one that is still coming.
        if text.endswith(_BROKEN) or len(text) <= len(known):
            return ""
        self._from, self._done = self._done, len(self._ids)
        return self._release(text[len(known) :])

    def _release(self, piece: str, final: bool = False) -> str:
        text = self._held + piece
        at = min((found for stop in self._stop if (found := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.stopped, self._held = True, ""
            return text[:at]
        hold = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        known, text = self._decode(self._from, self._done), self._decode(self._from)
        self._from = self._done = len(self._ids)
        return self._release(text[len(known) :], final=True)


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that a stop string begins with, short of all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
