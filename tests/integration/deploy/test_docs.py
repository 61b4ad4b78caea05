"""The generated tables of the pages, and the links, paths and folders that the pages name."""

import re
from pathlib import Path

import pytest

from docs.generate import pages

ROOT = Path(__file__).parents[3]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def anchors(path):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("path", "text"), list(pages()), ids=lambda v: v.name if isinstance(v, Path) else "")
def test_generated_tables_match_the_code(path, text):
    assert path.read_text() == text, "run python -m docs.generate"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_paths_of_a_page_exist(path):
    text = path.read_text()
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        target = path.parent / link if link else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for name in re.findall(r"\b((?:deploy|docs|services|benchmarks|fsr_core|tests)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_modules_that_a_page_runs_exist(path):
    for module in re.findall(r"python -m ((?:fsr|fsr_core|benchmarks|deploy|docs)[\w.]*)", path.read_text()):
        place = ROOT / ("services" if module.startswith("fsr.") else "") / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


def test_contributing_lists_every_folder_of_the_code():
    listed = set(re.findall(r"^((?:fsr_core|services)/[\w/]*)/ ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    listed |= set(re.findall(r"^(fsr_core)/ ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    files = [path for root in ("fsr_core", "services") for path in (ROOT / root).rglob("*.py")]
    assert listed == {str(path.parent.relative_to(ROOT)) for path in files}
