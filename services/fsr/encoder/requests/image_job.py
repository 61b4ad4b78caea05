"""One image of one request, on its way into a batch and out of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fsr.encoder.requests.request_plan import RequestPlan
from fsr_core import CompressedTokens
from fsr_core.backbones import ImageFeatures, PreparedImage

__all__ = ["BatchTimes", "ImageJob", "ImageResult"]


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """An image with its pixels, or with its features if the cache held them.

    `deadline` is by time.monotonic. `size` is its share of a batch: 1 for an ordinary image, more for one that costs
    more. `started` is set as soon as a batch has it.
    """

    plan: RequestPlan
    deadline: float
    cache_key: str
    prepared: PreparedImage | None
    features: ImageFeatures | None
    size: int
    started: threading.Event = field(default_factory=threading.Event, compare=False)


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """When the stages of a batch of so many jobs began and ended, by time.monotonic."""

    size: int
    began: float
    tower_ended: float
    text_ended: float
    ended: float

    @property
    def compress_seconds(self) -> float:
        return self.ended - self.text_ended


@dataclass(frozen=True)
class ImageResult:
    """What a batch gives for one of its jobs."""

    features: ImageFeatures
    kept: CompressedTokens
    batch: BatchTimes
