"""Every metric that the services export, read from their code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

__all__ = ["Metric", "catalogue", "series"]

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Metric:
    """One metric. `name` is the name in Prometheus, without a histogram's suffixes."""

    service: str
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def _declared(service: str, registry: CollectorRegistry) -> Iterator[Metric]:
    # The client library has no public way to the labels of a metric that has no value yet.
    for collector in registry._collector_to_names:
        kind, name = collector._type, collector._name  # type: ignore[attr-defined]
        suffix = "_total" if kind == "counter" else ""
        labels = tuple(collector._labelnames)  # type: ignore[attr-defined]
        yield Metric(service, f"{name}{suffix}", kind, labels, collector._documentation)  # type: ignore[attr-defined]


def catalogue() -> list[Metric]:
    """Every metric, by service."""
    from fsr.decoder.metrics import Metrics as DecoderMetrics
    from fsr.encoder.metrics import METRICS
    from fsr.gateway.telemetry.metrics import Metrics as GatewayMetrics

    metrics = [*_declared("gateway", GatewayMetrics().registry)]
    for name, metric in METRICS.items():
        kind = metric.kind.__name__.lower()
        suffix = "_total" if kind == "counter" else ""
        labels = (*metric.labels, "application", "deployment", "replica")
        metrics.append(Metric("encoder", f"ray_{name}{suffix}", kind, labels, metric.help))
    return [*metrics, *_declared("decoder", DecoderMetrics("").registry)]


def series() -> set[str]:
    """Names of all series in Prometheus, with suffixes."""
    return {
        f"{metric.name.removesuffix('_total')}{suffix}" for metric in catalogue() for suffix in _SUFFIXES[metric.kind]
    }
