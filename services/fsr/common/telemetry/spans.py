"""What is recorded of a request, if anything is: the interface, and what stands in for it while traces are off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

__all__ = ["NO_SPAN", "NO_TRACES", "Attributes", "Headers", "Span", "Tracer"]

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]
Headers = Callable[[], Iterable[tuple[str, str | bytes]]]


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
