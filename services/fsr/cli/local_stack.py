"""All services on one machine, each in a process of its own, started and stopped together."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fsr.cli.stack.plan import Plan
from fsr.cli.stack.signals import StopSignals
from fsr.cli.stack.stack import ServiceEnded, Stack, StartFailed

__all__ = ["ServiceEnded", "StartFailed", "running", "started"]


@contextlib.contextmanager
def started(
    plan: Plan,
    logs: Path,
    report: Callable[[str], None],
    *,
    start_seconds: float | None = None,
    stop_seconds: float = 30.0,
) -> Iterator[Stack]:
    """Starts the services of a plan; yields them once a request could be answered.

    On leaving it stops every process and kills those that still run after `stop_seconds`. With `start_seconds` None it
    waits as long as the processes live. `report` gets a line for what happens. Raises StartFailed.

    Meanwhile the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt; later ones do nothing.
    """
    with StopSignals() as signals:
        stack = Stack(plan, logs, signals, report)
        try:
            stack.start(start_seconds)
            yield stack
        finally:
            signals.ignore()
            stack.stop(stop_seconds)


@contextlib.contextmanager
def running(
    model: str,
    decoders: int,
    port: int,
    logs: Path,
    *,
    encoder_options: Mapping[str, str] | None = None,
    decoder_options: Mapping[str, str] | None = None,
    decoder_python: str = sys.executable,
    start_seconds: float | None = 180.0,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, str]]:
    """An encoder, `decoders` decoders and a gateway of one model, unwatched; yields their addresses. See `started`."""
    options = {"model": model}
    plan = Plan(
        port=port,
        decoders=decoders,
        decoder_python=decoder_python,
        encoder={**options, **(encoder_options or {})},
        decoder={**options, **(decoder_options or {})},
    )
    with started(plan, logs, report, start_seconds=start_seconds) as stack:
        yield stack.plan.addresses
