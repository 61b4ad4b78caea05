"""Finds the user's question in a prompt that a chat template has written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from fsr_core.backbones.language.templates import named_templates

__all__ = ["QuestionFinder"]

_FIRST, _REPLY, _SECOND = "Aardvark one?", "Badger two.", "Capybara three?"


def _common_end(one: str, other: str) -> str:
    """The longest text with which both end."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return "".join(letter for letter, _ in same)[::-1]


class QuestionFinder:
    """Finds the text of the last user turn between the texts that the chat template writes around it.

    It learns these texts from a short conversation that it renders with the template; of several named templates, with
    each.
    """

    def __init__(self, processor: Any, visual_tokens: Sequence[str]) -> None:
        self._tokenizer = processor.tokenizer
        self._noise = sorted({*visual_tokens, *self._tokenizer.all_special_tokens}, key=len, reverse=True)
        templates = getattr(processor, "chat_template", None) or self._tokenizer.chat_template
        by_name = named_templates(templates)
        self._around = []
        for _, template in sorted(by_name.items(), key=lambda named: named[0] != "default"):
            with suppress(Exception):  # a template refuses a conversation by raising any kind from Jinja
                self._around.append(_texts_around(processor, template))

    def find(self, token_ids: Sequence[int]) -> str:
        """The text of the last user turn.

        Raises:
            ValueError: no chat template of the checkpoint wrote this prompt.
        """
        text = str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        for before, after in self._around:
            _, opening, rest = text.rpartition(before) if before else ("", "", "")
            end = rest.rfind(after) if after else len(rest)
            question = rest[:end] if opening and end >= 0 else ""
            for token in self._noise:
                question = question.replace(token, " ")
            question = " ".join(question.split())
            if question:
                return question
        raise ValueError(
            "instruction: cannot be found in the prompt; write the prompt with the processor's chat template, or pass"
            " instruction="
        )


def _texts_around(processor: Any, template: str) -> tuple[str, str]:
    """What a template writes before and after the last user turn."""
    turns = [("user", _FIRST), ("assistant", _REPLY), ("user", _SECOND)]
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    options = {"chat_template": template, "add_generation_prompt": True, "tokenize": False}
    one = str(processor.apply_chat_template(chat[:1], **options))
    two = str(processor.apply_chat_template(chat, **options))
    opening = _common_end(one.partition(_FIRST)[0], two.partition(_REPLY)[2].partition(_SECOND)[0])
    return opening.strip(), two.partition(_SECOND)[2].strip()
