"""Structured logs with the request id, and the gRPC server parts that every service shares."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from functools import partial

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from structlog.typing import EventDict, WrappedLogger

__all__ = ["add_health_and_reflection", "configure_logging", "log_end", "stop_signal"]

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


def add_health_and_reflection(server: grpc.aio.Server, services: list[str]) -> HealthServicer:
    """Standard health (NOT_SERVING until told otherwise) and reflection for `services`."""
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(
        [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME], server
    )
    return servicer


def stop_signal() -> asyncio.Event:
    """Set at the first SIGTERM or SIGINT."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
