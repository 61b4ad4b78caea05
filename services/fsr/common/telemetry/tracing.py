"""Traces of requests: a request is a span, and in it are spans of its stages and of its calls to other services.

Off unless a collector is named. Then nothing of OpenTelemetry is loaded, and every request has the span `NO_SPAN`.
What is recorded is in :mod:`fsr.common.telemetry.otlp`, which needs the extra `otel`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

__all__ = [
    "NO_SPAN",
    "NO_TRACES",
    "Attributes",
    "Headers",
    "Span",
    "Tracer",
    "check_collector",
    "start_tracing",
    "traces",
]

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]
Headers = Callable[[], Iterable[tuple[str, str | bytes]]]
_OPTION = "--otlp-endpoint"
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Span:
    """One that is not recorded, and the interface of those that are.

    Moments are by `time.monotonic`. Spans are handed on as arguments: a generator that streams an answer may be closed
    in another context than the one in which it began.
    """

    @property
    def log_fields(self) -> dict[str, str]:
        """What leads from a log line to the trace."""
        return {}

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from an observation of a histogram to the trace; None if there is none to lead to."""
        return None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call by gRPC carries, so that the service that is called goes on with the trace."""
        return ()

    def rename(self, name: str) -> None:
        """Of what is known only later, such as the model."""

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Something that happens now."""

    def stage(self, name: str, began: float, ended: float, attributes: Attributes | None = None) -> None:
        """A part of the work, which is over."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A block that is a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.stage(name, began, time.monotonic())

    def call(self, method: str, address: str) -> Span:
        """The span of a call that begins now, of a gRPC method in full, such as `fsr.v1.EncoderService/Encode`."""
        return self

    def end(self, code: str = "OK", reason: str = "") -> None:
        """Ends it now, with a gRPC code."""


NO_SPAN = Span()


class Tracer:
    """Records nothing."""

    active = False

    def request(self, name: str, headers: Headers, *, begins: bool = False) -> Span:
        """The span of a request that arrives now.

        It belongs to the trace that its `headers` (or gRPC metadata) name by W3C's `traceparent`. If they name none,
        it begins a trace, or is not recorded unless it `begins`.
        """
        return NO_SPAN

    def close(self) -> None:
        """Sends what is recorded, for a few seconds at most."""


NO_TRACES = Tracer()


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
