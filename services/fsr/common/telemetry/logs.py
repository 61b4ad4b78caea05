"""Structured logs with the request id.

A request never fails because its log line cannot be written, as on a full disk: the line is lost, and counted. Nor does
it fail because a metric cannot be counted: that is logged.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO

import structlog
from structlog.typing import EventDict, WrappedLogger

from fsr.common.errors import shortened

__all__ = ["adopt_logger", "configure_logging", "counting", "lines_lost", "log_end"]

log = structlog.get_logger()
_MOST_BYTES = 2000  # of a text in a log line
_MOST_OF_A_TRACEBACK = 20_000
_MOST_ITEMS = 32  # of a list


class _StandardError:
    """Standard error, which loses a line rather than raise an error."""

    lost = 0  # lines

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        with suppress(AttributeError, OSError):  # the process has no standard error
            # Without a buffer: what a full disk did not take would stay in it, and fail once more as the process ends.
            self._file = open(sys.stderr.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115

    def write(self, line: str) -> None:
        unwritten = line.encode(errors="backslashreplace")
        with suppress(OSError):
            while unwritten and self._file is not None and (written := self._file.write(unwritten)):
                unwritten = unwritten[written:]
        if unwritten:
            _StandardError.lost += 1

    def flush(self) -> None:
        """Nothing is kept back."""


def lines_lost() -> int:
    """Log lines of this process that could not be written."""
    return _StandardError.lost


def configure_logging(service: str, level: str) -> None:
    """Logs go to standard error, one JSON object a line, with service, level, time and what the request has bound."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            partial(_named, service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _bounded,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=_StandardError()),  # type: ignore[arg-type]
    )


def _named(service: str, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Adds the service's name. It is not bound, because threads do not see what is bound."""
    event["service"] = service
    return event


def _bounded(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Cuts long texts and lists: whatever comes from a caller or a replica, its log line stays a line."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = shortened(value, _MOST_OF_A_TRACEBACK if name == "exception" else _MOST_BYTES)
        elif isinstance(value, list | tuple):
            event[name] = [shortened(one, _MOST_BYTES) if isinstance(one, str) else one for one in value[-_MOST_ITEMS:]]
    return event


class _ToStructlog(logging.Handler):
    def __init__(self, event: str, level: int) -> None:
        super().__init__(level)
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, self._event, reason=record.getMessage(), exc_info=record.exc_info)


def adopt_logger(name: str, event: str, level: int = logging.WARNING) -> None:
    """From now on what a library logs, from this level on, are lines of the service's log, with `event` as theirs."""
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [_ToStructlog(event, level)], False


def log_end(rpc: str, code: str, began: float, **fields: object) -> None:
    """Logs the one line of a request that has ended; `began` by `time.monotonic`.

    Never give it a question, picture or answer. On an event loop the line is written after what is ready now, so that
    the end of the answer does not wait for it.
    """
    seconds = round(time.monotonic() - began, 4)
    event = "answered" if code == "OK" else "failed"
    line = partial(log.info, event, rpc=rpc, code=code, seconds=seconds, **fields)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        line()
    else:
        loop.call_soon(line)


@contextmanager
def counting(what: str) -> Iterator[None]:
    """A block, or a function that it decorates, that counts something. Its errors are logged, and go no further."""
    try:
        yield
    except Exception as error:  # of a metrics library: whatever its reason is, the answer is right
        log.error("not counted", what=what, reason=repr(error))
