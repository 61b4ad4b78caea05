"""Features before compression, kept for follow-up questions about the same picture."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from fsr_core.backbones import ImageFeatures

__all__ = ["FeatureCache"]


class FeatureCache:
    """Least recently used first out, bounded in bytes. Not thread-safe: the event loop owns it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._entries = max_bytes, OrderedDict[str, ImageFeatures]()
        self.nbytes = 0

    @staticmethod
    def key(data: bytes) -> str:
        """Model and preprocessing are one a replica, so the picture's bytes are the whole key."""
        return hashlib.sha256(data).hexdigest()

    def get(self, key: str) -> ImageFeatures | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, features: ImageFeatures) -> None:
        if key in self._entries or features.nbytes > self._max_bytes:
            return
        self._entries[key] = features
        self.nbytes += features.nbytes
        while self.nbytes > self._max_bytes:
            self.nbytes -= self._entries.popitem(last=False)[1].nbytes
