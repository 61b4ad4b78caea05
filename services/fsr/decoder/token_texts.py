"""The text of each token of an answer, in bytes: a token may hold a part of a character only."""

from __future__ import annotations

import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

__all__ = ["TokenTexts"]

_REPLACEMENT = "\ufffd"
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """What each token of a vocabulary adds to a text. Joined, the bytes of an answer's tokens are its text in UTF-8.

    A text that a stop string ends is the beginning of the joined bytes. Bytes that are no UTF-8 are replacement
    characters in the text. A special token adds nothing, because answers do not show it.

    The tokenizer itself tells what a token adds: to the text of another token, or, at the beginning of an answer, where
    many tokenizers drop a space, to no text. Where that is no whole character, the token's name spells its bytes, in
    one of two ways: byte fallback of SentencePiece (``<0xE6>``), or the letters of byte-level BPE.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._before_text = self._decode(self._before)
        self._byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self._known: dict[tuple[int, bool], bytes] = {}

    def of(self, token: int, begins: bool = False) -> bytes:
        """What a token adds to a text.

        Args:
            token: its id. An id that the tokenizer lacks adds nothing.
            begins: whether it is the first token of the text, not counting those that add nothing anywhere.
        """
        key = (token, begins)
        if key not in self._known:
            self._known[key] = self._bytes_of(token, begins)
        return self._known[key]

    def _bytes_of(self, token: int, begins: bool) -> bytes:
        text = self._decode([token]) if begins else self._decode([*self._before, token])[len(self._before_text) :]
        if _REPLACEMENT not in text:
            return text.encode()
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        fallback = _BYTE_FALLBACK.fullmatch(name)
        if fallback:
            return bytes.fromhex(fallback[1])
        if all(letter in self._byte_of for letter in name):
            return bytes(self._byte_of[letter] for letter in name)
        return text.encode()

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
