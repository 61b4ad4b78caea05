"""The encoder's metrics. Each node's Ray agent exports them, with `ray_` before every name.

Ray adds the labels `application`, `deployment` and `replica`. Our own labels never hold a caller's data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.serve import metrics

from fsr.common.requests.token_counts import count_tokens
from fsr.common.telemetry.logs import counting
from fsr.v1 import encoder_pb2

__all__ = ["METRICS", "EncoderMetrics"]

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
_SIZES = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]
_TOKENS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
_MODEL_AND_METHOD = ("model", "method")


@dataclass(frozen=True)
class _Declared:
    kind: Any  # a class of ray.serve.metrics, whose type hints allow one label only
    help: str
    labels: tuple[str, ...]
    boundaries: Sequence[float] | None = None

    def make(self, name: str) -> Any:
        bounds = {} if self.boundaries is None else {"boundaries": list(self.boundaries)}
        return self.kind(name, description=self.help, tag_keys=self.labels, **bounds)


METRICS = {
    "fsr_encoder_batch_size": _Declared(metrics.Histogram, "Images in a batch", ("model",), _SIZES),
    "fsr_encoder_stage_seconds": _Declared(
        metrics.Histogram, "Seconds of a batch by stage: encode, compress", ("model", "stage"), _SECONDS
    ),
    "fsr_encoder_images": _Declared(metrics.Counter, "Images compressed", _MODEL_AND_METHOD),
    "fsr_encoder_visual_tokens_in": _Declared(metrics.Counter, "Visual tokens before compression", _MODEL_AND_METHOD),
    "fsr_encoder_visual_tokens_kept": _Declared(
        metrics.Counter, "Visual tokens kept, by stage: focus, scan", (*_MODEL_AND_METHOD, "stage")
    ),
    "fsr_encoder_visual_tokens_merged": _Declared(
        metrics.Counter, "Dropped tokens merged into a kept one", _MODEL_AND_METHOD
    ),
    "fsr_encoder_focus_wanted": _Declared(
        metrics.Histogram, "K_F of an image before the budget's clamp", _MODEL_AND_METHOD, _TOKENS
    ),
    "fsr_encoder_focus_kept": _Declared(
        metrics.Histogram, "K_F of an image after the budget's clamp", _MODEL_AND_METHOD, _TOKENS
    ),
    "fsr_encoder_cache_hits": _Declared(metrics.Counter, "Images whose features were cached", ("model",)),
    "fsr_encoder_shared_cache_hits": _Declared(
        metrics.Counter, "Of the images whose features were cached, those of another replica", ("model",)
    ),
    "fsr_encoder_cache_misses": _Declared(metrics.Counter, "Images whose features were not cached", ("model",)),
    "fsr_encoder_cache_bytes": _Declared(metrics.Gauge, "Bytes of features in the cache", ("model",)),
}
"""The metrics by their names without Ray's prefix. `docs/metrics.md` is generated from this table."""


class _Label(str):
    """A label's value. Ray asks it for its ASCII bytes and hands them on as they are; it gets UTF-8."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode("utf-8", errors)


class EncoderMetrics:
    """Made once a replica, inside its process, so that Ray's labels are right. No method raises an error.

    Batches and responses are only noted, in any thread, so that no answer waits for metrics. `flush` counts them.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._all = {name: declared.make(name) for name, declared in METRICS.items()}
        self._noted: deque[Callable[[], None]] = deque()

    def flush(self) -> None:
        """Counts what has been noted until now."""
        while self._noted:
            self._noted.popleft()()

    def _add(self, name: str, value: float, **labels: str) -> None:
        metric = self._all[f"fsr_encoder_{name}"]
        tags: dict[str, str] = {key: _Label(text) for key, text in (("model", self._model), *labels.items())}
        with counting(name):
            if isinstance(metric, metrics.Histogram):
                metric.observe(value, tags=tags)
            elif isinstance(metric, metrics.Gauge):
                metric.set(value, tags=tags)
            elif value > 0:  # Ray refuses to increase a counter by 0
                metric.inc(value, tags=tags)

    def note_batch(self, size: int, encode_seconds: float, compress_seconds: float) -> None:
        """Notes one batch that went through the towers and the compressors."""
        self._noted.append(partial(self._count_batch, size, encode_seconds, compress_seconds))

    def _count_batch(self, size: int, encode_seconds: float, compress_seconds: float) -> None:
        self._add("batch_size", size)
        self._add("stage_seconds", encode_seconds, stage="encode")
        self._add("stage_seconds", compress_seconds, stage="compress")

    def count_shared_hit(self) -> None:
        """Counts an image whose features another replica had; its response counts it among the cached ones."""
        self._add("shared_cache_hits", 1)

    def note_response(self, method: str, response: encoder_pb2.EncodeResponse, cache_bytes: int) -> None:
        """Notes the images of one response; `cache_bytes` are the bytes in the cache after it."""
        self._noted.append(partial(self._count_response, method, response, cache_bytes))

    def _count_response(self, method: str, response: encoder_pb2.EncodeResponse, cache_bytes: int) -> None:
        by = {"method": method}
        for counts in map(count_tokens, response.images):
            self._add("images", 1, **by)
            self._add("visual_tokens_in", counts.source, **by)
            for stage, kept in counts.kept_by_stage.items():
                self._add("visual_tokens_kept", kept, stage=stage, **by)
            self._add("visual_tokens_merged", counts.merged, **by)
            if counts.focus_wanted:  # other methods have no focus set
                self._add("focus_wanted", counts.focus_wanted, **by)
                self._add("focus_kept", counts.focus_kept, **by)
        self._add("cache_hits", response.cache_hits)
        self._add("cache_misses", len(response.images) - response.cache_hits)
        self._add("cache_bytes", cache_bytes)
