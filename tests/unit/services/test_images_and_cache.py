import io

import pytest
import torch
from PIL import Image

from fsr_core.backbones import ImageFeatures, Tile
from services.encoder.cache import FeatureCache
from services.encoder.images import decode_image
from services.errors import InvalidRequest


def encoded(kind, size=(8, 6), **options):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(kind):
    image = decode_image(encoded(kind), "images[0].data", 100)
    assert (image.mode, image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"hello", "no readable"),
        (encoded("BMP"), "no readable"),
        (encoded("PNG", (200, 200))[:-60], "truncated"),
        (encoded("PNG", (11, 10)), "11 x 10 is more than 100"),
        (encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")]), "animated"),
    ],
)
def test_bad_pictures_are_named(data, says):
    with pytest.raises(InvalidRequest, match=r"images\[0\]\.data: .*" + says):
        decode_image(data, "images[0].data", 100 if "more" in says else 10**6)


def features():
    tile = Tile(0, 2, 2, (0, 0, 1, 1))
    return ImageFeatures(torch.ones(4, 8), torch.ones(4), None, None, None, (tile,), (1, 1))


def test_cache_is_bounded_in_bytes_and_drops_the_oldest():
    size = features().nbytes
    cache = FeatureCache(2 * size)
    for key in "ab":
        cache.put(key, features())
    assert cache.get("a") is not None
    cache.put("c", features())
    assert (cache.get("b"), cache.nbytes) == (None, 2 * size)
    assert cache.get("a") is not None and cache.get("c") is not None
    FeatureCache(1).put("x", features())
