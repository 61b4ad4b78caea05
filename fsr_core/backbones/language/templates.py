"""The chat template of a checkpoint, and the texts that only the template may write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, read_json

__all__ = ["ReservedTexts", "chat_template", "named_templates"]


def chat_template(checkpoint: Checkpoint, tokenizer: Any) -> str:
    """The checkpoint's chat template: the processor's, which knows pictures, else the tokenizer's.

    Of several named ones it is the one named ``default``, as in the library, or the only one.

    Raises ValueError if there is none, or if it is not clear which one is meant.
    """
    folder, named = checkpoint.folder, list[str]()
    jinja = folder / "chat_template.jinja"
    found: list[Any] = [jinja.read_text(encoding="utf-8") if jinja.is_file() else None]
    files = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
    found += [read_json(folder / name).get("chat_template") for name in files]
    found.append(tokenizer.chat_template)  # it has those of the folder additional_chat_templates too
    for templates in found:
        by_name = named_templates(templates)
        if "default" in by_name or len(by_name) == 1:
            return by_name.get("default") or next(iter(by_name.values()))
        named += by_name
    if named:
        names = ", ".join(sorted(set(named)))
        raise ValueError(f"model: {checkpoint.name} has the chat templates {names}; name one of them default")
    raise ValueError(f"model: {checkpoint.name} has no chat template; add its chat_template.jinja")


def named_templates(templates: Any) -> dict[str, str]:
    """Templates by name, in any of the three forms that the library knows; a single one is named ``default``."""
    if isinstance(templates, str):
        return {"default": templates} if templates else {}
    if isinstance(templates, Sequence):
        pairs = [(entry.get("name"), entry.get("template")) for entry in templates if isinstance(entry, Mapping)]
    else:
        pairs = list(templates.items()) if isinstance(templates, Mapping) else []
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


_TURNS = (("system", "Aardvark"), ("user", "Badger"), ("assistant", "Capybara"), ("user", "Dormouse"))


class ReservedTexts:
    """Finds texts with which a message would make turns of its own: special tokens, and the marks of roles.

    Marks are the tokens that the template writes around turns, special or not. If the template parts any two turns by
    plain text alone, as Vicuna's by ``ASSISTANT:`` and Mistral's by ``[/INST]``, such texts are marks too.

    Args:
        tokenizer: the checkpoint's.
        render: writes a conversation of (role, text) with the checkpoint's template. It may raise.
    """

    def __init__(self, tokenizer: Any, render: Callable[[Sequence[tuple[str, str]]], str]) -> None:
        self._tokenizer = tokenizer
        added = {token: entry for token, entry in tokenizer.added_tokens_decoder.items() if entry.content.strip()}
        special = {token: entry.content for token, entry in added.items() if entry.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        tokens = _any_of({entry.content for entry in added.values()} | set(special.values()))
        gaps, plain = _gaps(render), set[str]()
        if any(gap.strip() and not tokens.search(gap) for gap in gaps):
            texts = {text.strip() for gap in gaps for text in tokens.split(gap)}
            # A word alone, as the role's name after a token, is no mark.
            plain = {text for text in texts if re.search(r"\w", text) and re.search(r"[^\w\s]", text)}
        reserved = {*special.values(), *(found for gap in gaps for found in tokens.findall(gap))}
        self._tokens, self._texts = _any_of(reserved), _any_of(reserved | plain)
        # A tokenizer may normalise a text before it looks for its tokens. All that it does not know is the unknown one.
        self._ids = frozenset(special) - {tokenizer.unk_token_id}

    def find(self, text: str, role: str) -> str | None:
        """The first of these texts in a message's `text`; None if there is none.

        An answer may hold marks of plain text, because the model may have written them: it can be sent back as it is.
        """
        found = (self._tokens if role == "assistant" else self._texts).search(text)
        if found:
            return found[0]
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        token = next((token for token in ids if token in self._ids), None)
        return None if token is None else str(self._tokenizer.convert_ids_to_tokens(token))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these texts, a longer one before those that it begins with."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _gaps(render: Callable[[Sequence[tuple[str, str]]], str]) -> list[str]:
    """What the template writes before, between and after turns; nothing if it refuses so short a conversation."""
    for turns in (_TURNS, _TURNS[1:]):  # some templates take no system turn
        with suppress(Exception):  # a template refuses a conversation by raising any kind from Jinja
            return re.split("|".join(text for _, text in turns), render(turns))
    return []
