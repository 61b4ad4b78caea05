"""What goes with a request through the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from fsr.common.telemetry.tracing import NO_SPAN, Span
from fsr.gateway.auth import Caller
from fsr.gateway.deadline import Deadline
from fsr.gateway.request_record import RequestRecord

__all__ = ["RequestContext"]


@dataclass(frozen=True)
class RequestContext:
    """Who makes the request, how long they wait, what has happened to it so far, and its span in a trace."""

    caller: Caller
    deadline: Deadline
    record: RequestRecord
    span: Span = NO_SPAN
