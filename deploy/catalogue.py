"""Every metric that the services export, read off their code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

__all__ = ["Metric", "catalogue", "series"]

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Metric:
    """One metric; `name` is what Prometheus stores, without a histogram's suffixes."""

    service: str
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def _of(service: str, registry: CollectorRegistry) -> Iterator[Metric]:
    for collector in registry._collector_to_names:  # no public way to the labels of a metric without children
        kind, name = collector._type, collector._name  # type: ignore[attr-defined]
        suffix = "_total" if kind == "counter" else ""
        labels = tuple(collector._labelnames)  # type: ignore[attr-defined]
        yield Metric(service, f"{name}{suffix}", kind, labels, collector._documentation)  # type: ignore[attr-defined]


def catalogue() -> list[Metric]:
    """All of them, by service."""
    from fsr.decoder.metrics import Metrics as DecoderMetrics
    from fsr.encoder.metrics import METRICS
    from fsr.gateway.metrics import Metrics as GatewayMetrics

    found = [*_of("gateway", GatewayMetrics().registry)]
    for name, declared in METRICS.items():
        kind = declared.kind.__name__.lower()
        suffix = "_total" if kind == "counter" else ""
        labels = (*declared.labels, "application", "deployment", "replica")
        found.append(Metric("encoder", f"ray_{name}{suffix}", kind, labels, declared.help))
    return [*found, *_of("decoder", DecoderMetrics("").registry)]


def series() -> set[str]:
    """Names as they are stored, with suffixes."""
    return {
        f"{metric.name.removesuffix('_total')}{suffix}" for metric in catalogue() for suffix in _SUFFIXES[metric.kind]
    }
