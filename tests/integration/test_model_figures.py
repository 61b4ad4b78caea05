"""The page of models shows the figures that its script computes."""

from benchmarks import model_figures


def test_page_shows_the_computed_figures():
    page = model_figures.PAGE.read_text()
    assert model_figures.written(page, model_figures.tables()) == page
    assert "| 576 -> 64 | 288 -> 32 | 9.04 -> 2.29 |" in page
