"""Structured logs with the request id."""

from __future__ import annotations

import logging
import sys
import time
from functools import partial

import structlog
from structlog.typing import EventDict, WrappedLogger

__all__ = ["configure_logging", "log_end"]

log = structlog.get_logger()


def configure_logging(service: str, level: str) -> None:
    """Logs go to standard error, one JSON object a line, with service, level, time and what the request has bound."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            partial(_named, service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _named(service: str, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Adds the service's name. It is not bound, because threads do not see what is bound."""
    event["service"] = service
    return event


def log_end(rpc: str, code: str, began: float, **fields: object) -> None:
    """Logs the one line of a request that has ended; `began` by `time.monotonic`.

    Never give it a question, picture or answer.
    """
    seconds = round(time.monotonic() - began, 4)
    log.info("answered" if code == "OK" else "failed", rpc=rpc, code=code, seconds=seconds, **fields)
