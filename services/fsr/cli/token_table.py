"""The tokens of an answer with their probabilities, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

from rich.markup import escape
from rich.table import Table

from fsr.client.types import TokenChoice, TokenLogprob

__all__ = ["token_objects", "token_table"]


def token_table(choices: Sequence[TokenChoice]) -> Table:
    """One row for each token, with the likeliest tokens at its place."""
    table = Table("token", "probability", "likeliest at its place", box=None, pad_edge=False)
    for choice in choices:
        likeliest = ", ".join(f"{_quoted(one)} {exp(one.logprob):.1%}" for one in choice.top)
        table.add_row(escape(_quoted(choice.token)), f"{exp(choice.token.logprob):.1%}", escape(likeliest))
    return table


def _quoted(token: TokenLogprob) -> str:
    """The token's text in quotes, a part of a character as its bytes; the id of a token without text."""
    return repr(token.text.decode(errors="backslashreplace")) if token.text else f"<{token.id}>"


def token_objects(choices: Sequence[TokenChoice]) -> list[dict[str, Any]]:
    """For JSON: text where the bytes are whole characters, and always the bytes."""
    return [_object(choice.token) | {"top": [_object(one) for one in choice.top]} for choice in choices]


def _object(token: TokenLogprob) -> dict[str, Any]:
    text = token.text.decode(errors="replace")
    return {"id": token.id, "text": text, "bytes": list(token.text), "logprob": token.logprob}
