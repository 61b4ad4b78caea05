"""Links, anchors and paths on the pages, and the pages that the code names."""

import re

import pytest

from helpers.pages import PAGES, ROOT, anchors, links, name_of

ON_PAGES = r"\b((?:\.ci|benchmarks|deploy|docs|examples|fsr_core|protos|services|tests)/[\w./-]+\.\w+)"
CODE = ("fsr_core", "services", "deploy", "benchmarks", "examples", "tests", "protos")


def expected(page, link):
    """The page or file that a link leads to, and its anchor."""
    target, _, anchor = link.partition("#")
    return (page.parent / target).resolve() if target else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_of_a_page_exist(page):
    local = [link for link in links(page) if not re.match(r"https?:|mailto:", link)]
    for link in local:
        target, anchor = expected(page, link)
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_addresses_on_a_page_are_encrypted_or_local(page):
    outside = [link for link in links(page) if link.startswith("http:")]
    assert [link for link in outside if not re.match(r"http://(127\.0\.0\.1|localhost)[:/]", link)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_that_a_page_names_exist(page):
    for name in re.findall(ON_PAGES, page.read_text()):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


def test_readme_leads_to_every_page_and_picture():
    found, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        found.add(page)
        if page.suffix == ".md":
            local = [expected(page, link)[0] for link in links(page) if not re.match(r"https?:|mailto:", link)]
            todo += set(local) - found
    pictures = [path for path in (ROOT / "docs/img").iterdir() if path.suffix != ".d2"]
    assert sorted(map(str, {*PAGES, *pictures} - found)) == []


def test_pages_that_the_code_names_exist():
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yml", ".yaml")]
    named = {name for path in files for name in re.findall(r"\bdocs/([\w-]+\.md(?:#[\w-]+)?)", path.read_text())}
    assert len(named) > 5
    for name in named:
        page, _, anchor = name.partition("#")
        assert (ROOT / "docs" / page).exists(), name
        assert not anchor or anchor in anchors(ROOT / "docs" / page), name
