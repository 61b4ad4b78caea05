"""The page of models and `fsr plan` have the figures that the script computes."""

from benchmarks import model_figures


def test_page_shows_the_computed_figures():
    page = model_figures.PAGE.read_text()
    assert model_figures.written(page, model_figures.tables()) == page
    assert "| 576 -> 64 | 288 -> 32 | 9.04 -> 2.29 |" in page


def test_built_in_figures_are_the_computed_ones():
    assert model_figures.PUBLISHED.read_text() == model_figures.published()
