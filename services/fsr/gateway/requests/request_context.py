"""What goes with a request through the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from fsr.common.telemetry.spans import NO_SPAN, Span
from fsr.gateway.callers.auth import Caller
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.telemetry.request_record import RequestRecord

__all__ = ["RequestContext"]


@dataclass(frozen=True)
class RequestContext:
    """Who makes the request, how long they wait, what has happened to it so far, and its span in a trace."""

    caller: Caller
    deadline: Deadline
    record: RequestRecord
    span: Span = NO_SPAN
