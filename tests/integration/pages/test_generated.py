"""What `python -m docs.generate` writes is what the code says."""

import pytest

from docs.generate import pages
from helpers.pages import name_of


@pytest.mark.parametrize(("path", "text"), [pytest.param(*page, id=name_of(page[0])) for page in pages()])
def test_page_matches_the_code(path, text):
    assert path.exists() and path.read_text() == text, "run python -m docs.generate"
