"""Token ids to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextStream"]

_BROKEN = "\ufffd"


class TextStream:
    """Gives out whole characters only, and nothing that may still turn out to be the start of a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        self._ids.append(token)
        text = self._text()
        for stop in self._stop:
            at = text.find(stop)
            if at >= 0:
                text, self.stopped = text[:at], True
        if self.stopped:
            return self._send(text)
        # A replacement character at the end is the first half of one that is still coming.
        certain = len(text.rstrip(_BROKEN)) if text.endswith(_BROKEN) else len(text)
        held = max(
            (n for stop in self._stop for n in range(1, len(stop)) if text[:certain].endswith(stop[:n])), default=0
        )
        return self._send(text[: certain - held])

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._send(self._text())

    def _send(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece
