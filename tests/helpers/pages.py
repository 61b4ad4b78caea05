"""The project's pages, read as GitHub reads them: anchors, links and blocks of code."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = [
    "PAGES",
    "ROOT",
    "Block",
    "anchors",
    "blocks",
    "code_spans",
    "is_example",
    "links",
    "name_of",
    "sends_requests",
]

ROOT = Path(__file__).resolve().parents[2]
_BUILT = {"build", "dist", "runs"}
_MARKDOWN = MarkdownIt("commonmark").enable("table")


def _pages() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*.md")):
        folders = path.relative_to(ROOT).parts[:-1]
        if not any(folder.startswith(".") or folder in _BUILT for folder in folders):
            yield path


PAGES = list(_pages())


@dataclass(frozen=True)
class Block:
    """A block of code. `line` is the line of its first line of code on the page, from 1."""

    language: str
    code: str
    line: int


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Every fenced block, also those in lists, without their indentation."""
    found = [token for token in _MARKDOWN.parse(page.read_text()) if token.type == "fence"]
    return [Block(token.info.strip(), token.content, token.map[0] + 2) for token in found if token.map]


def is_example(block: Block) -> bool:
    """Whether it is Python that can run, and no signature of a reference."""
    return block.language == "python" and not block.code.startswith(("def ", "async def "))


def sends_requests(block: Block) -> bool:
    """Whether it is an example that asks a gateway."""
    if block.language == "python":
        return bool(re.search(r"\b(Client|AsyncClient|OpenAI)\(|\burlopen\(", block.code))
    return block.language == "sh" and "curl" in block.code


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings: the second one of a name ends in -1."""
    found: Counter[str] = Counter()
    for heading in _inside(page, "heading_open"):
        text = "".join(part.content for part in heading if part.type in ("text", "code_inline"))
        found[re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-")] += 1
    return {f"{name}-{number}" if number else name for name, count in found.items() for number in range(count)}


def links(page: Path) -> list[str]:
    """Where links and pictures lead, those written as HTML too."""
    found = []
    for token in _flat(_MARKDOWN.parse(page.read_text())):
        found += [str(token.attrs[name]) for name in ("href", "src") if name in token.attrs]
        if token.type in ("html_inline", "html_block"):
            found += re.findall(r'(?:href|src|srcset)="([^"]*)"', token.content)
    return [unquote(link) for link in found]


def code_spans(page: Path) -> list[str]:
    """What stands in backticks in the text."""
    return [token.content for token in _flat(_MARKDOWN.parse(page.read_text())) if token.type == "code_inline"]


def _flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _flat(token.children or [])


def _inside(page: Path, kind: str) -> Iterator[list[Token]]:
    """The inline tokens of every block of a kind."""
    tokens = _MARKDOWN.parse(page.read_text())
    return (after.children or [] for before, after in itertools.pairwise(tokens) if before.type == kind)
