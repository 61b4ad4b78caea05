"""The generated tables of the pages, and the links and paths on all pages."""

import re
from pathlib import Path

import pytest

from docs.generate import pages

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("path", "text"), list(pages()), ids=lambda v: v.name if isinstance(v, Path) else "")
def test_generated_tables_match_the_code(path, text):
    assert path.read_text() == text, "run python -m docs.generate"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_and_paths_of_a_page_exist(path):
    text = path.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"\b((?:deploy|docs|services|benchmarks|fsr_core)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).exists(), name
