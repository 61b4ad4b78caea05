"""A call by HTTP, as admission sees it."""

from __future__ import annotations

from typing import Literal

from fastapi import Request

from fsr.gateway.request_record import RequestRecord

__all__ = ["HttpCall"]


class HttpCall:
    """The caller gets the request's id as header `x-request-id`, whatever becomes of the request."""

    interface: Literal["grpc", "http"] = "http"

    def __init__(self, request: Request, seconds: float | None = None) -> None:
        """`seconds`: how long the caller waits; None if it does not say."""
        self._request, self._seconds = request, seconds

    def authorization(self) -> str:
        return self._request.headers.get("authorization", "")

    def time_remaining(self) -> float | None:
        return self._seconds

    def report(self, record: RequestRecord) -> None:
        self._request.state.request_id = record.request_id
