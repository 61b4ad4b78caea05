"""A call by HTTP, as admission sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

from fastapi import Request

from fsr.gateway.http.field_names import FieldNames
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.telemetry.request_record import RequestRecord

__all__ = ["HttpCall"]


class HttpCall:
    """The caller gets the request's id as header `x-request-id`, whatever becomes of the request."""

    interface: Literal["grpc", "http"] = "http"

    def __init__(self, request: Request) -> None:
        self._request = request
        self._deadline: Deadline | None = None

    def authorization(self) -> str:
        return self._request.headers.get("authorization", "")

    def headers(self) -> Iterable[tuple[str, str | bytes]]:
        return self._request.headers.items()

    def connection(self) -> str:
        return str(self._request.client)

    def time_remaining(self) -> float | None:
        return self._deadline.seconds_left if self._deadline else None

    def admitted(self, record: RequestRecord) -> None:
        """Called when the request has its slot: from here on its body counts as part of it."""
        self.report(record)
        self._request.state.body.free()

    def report(self, record: RequestRecord) -> None:
        self._request.state.request_id = record.request_id

    def waits(self, seconds: float | None, context: RequestContext, settings: GatewaySettings) -> RequestContext:
        """The context, once the body has said how long the caller waits; None if it does not say.

        Raises InvalidRequest, which names `fsr.timeout`, for a time that is too long.
        """
        if seconds is None:
            return context
        with FieldNames().named():
            self._deadline = Deadline.after(seconds, settings.default_timeout_seconds, settings.max_timeout_seconds)
        return dataclasses.replace(context, deadline=self._deadline)
