"""The cache of features: bounded in bytes, least recently used out first."""

import torch

from fsr.encoder.cache import FeatureCache
from fsr_core.backbones import ImageFeatures, Tile


def features(tokens=4):
    tile = Tile(0, 2, tokens // 2, (0, 0, 1, 1))
    return ImageFeatures(features=torch.ones(tokens, 8), saliency=torch.ones(tokens), tiles=(tile,), size=(1, 1))


def test_cache_when_full_then_the_least_recently_used_is_dropped():
    size = features().nbytes
    cache = FeatureCache(2 * size)
    for key in "ab":
        cache.put(key, features())
    assert cache.get("a") is not None
    cache.put("c", features())
    assert (cache.get("b"), cache.nbytes) == (None, 2 * size)
    assert cache.get("a") is not None and cache.get("c") is not None


def test_cache_when_the_features_exceed_it_then_they_are_not_stored():
    cache = FeatureCache(features().nbytes)
    cache.put("a", features())
    cache.put("large", features(8))
    assert cache.get("large") is None and cache.get("a") is not None
    nothing = FeatureCache(0)
    nothing.put("a", features())
    assert (nothing.get("a"), nothing.nbytes) == (None, 0)


def test_cache_when_the_key_is_stored_already_then_the_first_features_stay():
    cache, first = FeatureCache(10**6), features()
    cache.put("a", first)
    cache.put("a", features())
    assert cache.get("a") is first and cache.nbytes == first.nbytes
