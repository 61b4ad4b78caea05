"""A cache of features before compression, for follow-up questions about the same picture."""

from __future__ import annotations

import hashlib
from operator import attrgetter

from cachetools import LRUCache

from fsr.v1 import types_pb2
from fsr_core.backbones import ImageFeatures

__all__ = ["FeatureCache", "cache_key"]


def cache_key(image: types_pb2.Image, multi_image: bool, salt: str) -> str:
    """A hash of everything that an image's features depend on, and of the tenant's `salt`: nobody may learn from a hit
    which pictures another tenant has sent.

    A replica has one model and one preprocessing, so neither is in the key. `multi_image` tells whether the image is
    prepared as one of several.
    """
    kind = "video" if image.frames else "multi-image" if multi_image else "image"
    key = hashlib.sha256(f"{kind} {len(salt)} {salt}".encode())
    key.update(image.SerializeToString(deterministic=True) if image.frames else image.data)
    return key.hexdigest()


class FeatureCache:
    """Drops the least recently used features when it holds more than `max_bytes`.

    It is not thread-safe: only the event loop uses it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[str, ImageFeatures] = LRUCache(max_bytes, getsizeof=attrgetter("nbytes"))

    @property
    def nbytes(self) -> int:
        """Bytes of the features that it holds."""
        return int(self._entries.currsize)

    def keys(self) -> set[str]:
        """The keys of all that it holds."""
        return set(self._entries)

    def get(self, key: str) -> ImageFeatures | None:
        """The features of `key`, which become the most recently used; None if they are not there."""
        return self._entries.get(key)

    def put(self, key: str, features: ImageFeatures) -> None:
        """Stores features. Does nothing if `key` is there already, or if they alone exceed the cache."""
        if key not in self._entries and features.nbytes <= self._entries.maxsize:
            self._entries[key] = features
