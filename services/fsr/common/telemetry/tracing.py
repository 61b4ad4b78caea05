"""Traces of requests: a request is a span, and in it are spans of its stages and of its calls to other services.

Off unless a collector is named. Then nothing of OpenTelemetry is loaded, and every request has the span `NO_SPAN`.
What is recorded is in :mod:`fsr.common.telemetry.otlp`, which needs the extra `otel`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fsr.common.telemetry.spans import NO_TRACES, Tracer

__all__ = ["check_collector", "start_tracing", "traces"]

_OPTION = "--otlp-endpoint"
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def start_tracing(service: str, endpoint: str | None = None) -> Tracer:
    """What records the requests of a service, for the collector at `endpoint`, or the one in the environment.

    Raises ValueError, which names the option or variable that is wrong.
    """
    name, collector = _collector(endpoint)
    if not collector:
        return NO_TRACES
    try:
        from fsr.common.telemetry.otlp import OtlpTracer
    except ImportError as error:
        remedy = "pip install 'fsr-gateway[otel]', or name no collector"
        raise ValueError(f"{name}: traces need the extra otel ({error}); {remedy}") from error
    try:
        return OtlpTracer(service, collector)
    except Exception as error:  # the library has no kind of its own for a variable that is wrong
        raise ValueError(
            f"{name}: traces cannot be sent ({error}); check the variables that begin with OTEL_"
        ) from error


@contextmanager
def traces(service: str, endpoint: str | None) -> Iterator[Tracer]:
    """As `start_tracing`, around the life of a service. Exits with one line if a name or address is wrong."""
    try:
        tracer = start_tracing(service, endpoint)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    try:
        yield tracer
    finally:
        tracer.close()


def check_collector(address: str) -> str:
    """The address. Raises ValueError if it is none of a collector."""
    if not re.fullmatch(r"https?://[^\s/]+/?", address):
        raise ValueError(f"{address!r} is no address of a collector; write http://host:4317, or https:// for TLS")
    return address


def _collector(endpoint: str | None) -> tuple[str, str]:
    """What names the collector, and its address; an empty one if traces are off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED", ""
    if endpoint:
        return _OPTION, endpoint
    name = next((name for name in _VARIABLES if os.environ.get(name)), "")
    if not name or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none":
        return name, ""
    protocol = next((protocol for protocol in _PROTOCOLS if os.environ.get(protocol)), None)
    if protocol is not None and os.environ[protocol] != "grpc":
        remedy = "set grpc, and name the collector's port for gRPC (4317)"
        raise ValueError(f"{protocol}: {os.environ[protocol]!r} is not offered; {remedy}")
    try:
        return name, check_collector(os.environ[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
