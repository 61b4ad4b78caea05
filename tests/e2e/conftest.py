import io

import pytest
from PIL import Image

from fsr_core.tiny.scenes import draw, make_scene
from helpers.page import chromium
from helpers.page import opened as opened_page


@pytest.fixture(scope="session")
def pictures():
    """Makes distinct pictures, from the first seed on; `large` ones take the encoder long to prepare."""

    def make(seed: int, count: int, large: bool = False) -> list[bytes]:
        return [encoded(draw(make_scene(number)), large) for number in range(seed, seed + count)]

    return make


def encoded(picture: Image.Image, large: bool) -> bytes:
    out = io.BytesIO()
    if large:
        picture.resize((1728, 1728)).save(out, "JPEG")
    else:
        picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser, system):
    """Opens the page, of the running system or of another gateway."""

    def opened(address=system["http"], **options):
        return opened_page(browser, address, **options)

    return opened
