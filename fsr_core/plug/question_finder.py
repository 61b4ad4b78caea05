"""Finds the user's question in a prompt that a chat template has written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

__all__ = ["QuestionFinder"]

_FIRST, _REPLY, _SECOND = "Aardvark one?", "Badger two.", "Capybara three?"


def _common_end(one: str, other: str) -> str:
    """The longest text with which both end."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return "".join(letter for letter, _ in same)[::-1]


class QuestionFinder:
    """Finds the text of the last user turn between the texts that the chat template writes around it.

    It learns these texts from a short conversation that it renders with the template.
    """

    def __init__(self, processor: Any, visual_tokens: Sequence[str]) -> None:
        self._tokenizer = processor.tokenizer
        self._noise = sorted({*visual_tokens, *self._tokenizer.all_special_tokens}, key=len, reverse=True)
        self._before, self._after = "", ""
        if getattr(processor, "chat_template", None):
            turns = [("user", _FIRST), ("assistant", _REPLY), ("user", _SECOND)]
            chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
            one = str(processor.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False))
            two = str(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
            opening = _common_end(one.partition(_FIRST)[0], two.partition(_REPLY)[2].partition(_SECOND)[0])
            self._before, self._after = opening.strip(), two.partition(_SECOND)[2].strip()

    def find(self, token_ids: Sequence[int]) -> str:
        """The text of the last user turn.

        Raises:
            ValueError: the chat template did not write this prompt.
        """
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        _, opening, rest = text.rpartition(self._before) if self._before else ("", "", "")
        end = rest.rfind(self._after) if self._after else len(rest)
        question = rest[:end] if opening and end >= 0 else ""
        for token in self._noise:
            question = question.replace(token, " ")
        question = " ".join(question.split())
        if not question:
            raise ValueError(
                "instruction: cannot be found in the prompt; write the prompt with the processor's chat template, or"
                " pass instruction="
            )
        return question
