"""Structured logs with the request id."""

from __future__ import annotations

import logging
import sys
import time
from functools import partial

import structlog
from structlog.typing import EventDict, WrappedLogger

from fsr.common.errors import shortened

__all__ = ["configure_logging", "log_end"]

log = structlog.get_logger()
_MOST_BYTES = 2000  # of a text in a log line
_MOST_OF_A_TRACEBACK = 20_000
_MOST_ITEMS = 32  # of a list


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
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


def log_end(rpc: str, code: str, began: float, **fields: object) -> None:
    """Logs the one line of a request that has ended; `began` by `time.monotonic`.

    Never give it a question, picture or answer.
    """
    seconds = round(time.monotonic() - began, 4)
    log.info("answered" if code == "OK" else "failed", rpc=rpc, code=code, seconds=seconds, **fields)
