"""What becomes of a call whose gateway fails: it goes to another gateway, or to the same one again.

Asking is safe to repeat. A stream that has begun goes on behind the tokens that came, so nothing comes twice.
"""

from __future__ import annotations

import random
import time
from math import isfinite
from numbers import Real

import grpc

from fsr.client.errors import InvalidRequestError, ServerError, is_from_gateway, retry_hint
from fsr.v1 import gateway_pb2

__all__ = ["Repetition", "Resumption", "check_seconds"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds between two attempts; each time twice as long
# What gRPC itself says when a connection breaks, or when its server stops.
_BROKEN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


def check_seconds(seconds: float) -> float:
    """Raises InvalidRequestError unless it is a number of seconds from 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not isfinite(seconds) or seconds < 0:
        remedy = "give a number such as 30, or 0 to get an error when a gateway dies"
        raise InvalidRequestError(f"resume_seconds: {seconds!r} is no number of seconds; {remedy}")
    return float(seconds)


class Repetition:
    """Whether a call that has brought nothing yet is made again: once at each other gateway, also if one is full, and
    if the connection broke once more at the first one."""

    def __init__(self, gateways: int) -> None:
        self._gateways, self._failures = gateways, 0

    def again(self, error: grpc.aio.AioRpcError) -> bool:
        """Counts a failure."""
        self._failures += 1
        most = self._gateways - is_from_gateway(error)
        return _passes(error) and self._failures <= most


class Resumption:
    """One answer, over as many streams as it takes.

    `request` is what the next call sends. `count` is the number of streams that went on with the answer so far.
    """

    def __init__(self, request: gateway_pb2.GenerateRequest, gateways: int, seconds: float) -> None:
        """A stream that has begun waits at most `seconds` without progress for a gateway to go on with it."""
        self.request, self.count = request, 0
        self._seconds, self._gateways, self._repetition = seconds, gateways, Repetition(gateways)
        self._token_ids = list(request.resume.token_ids)
        self._fingerprint = ""
        self._resuming = False  # `request` says so
        self._begun = self._answered = False  # the answer, the stream of the last call
        self._failures, self._failing_since = 0, 0.0  # in a row, without a message between

    def received(self, message: gateway_pb2.GenerateResponse) -> None:
        """Raises ServerError if the gateway began the answer anew."""
        if not self._answered:
            self.count += self._resuming
            if self._resuming and not message.fingerprint:
                reason = "the one that was asked to go on with the answer cannot, and began it anew"
                raise ServerError(f"gateway: {reason}; let all gateways have the version of the newest")
            self._fingerprint = self._fingerprint or message.fingerprint
        self._answered = self._begun = True
        self._failures = 0
        self._token_ids.extend(message.token_ids)

    def pause(self, error: grpc.aio.AioRpcError) -> float | None:
        """Seconds until the next call, with which the caller makes up for this failure; None if there is none."""
        self._answered = False
        if not self._begun:
            return 0.0 if self._repetition.again(error) else None
        # Without a fingerprint in its first message the gateway is too old to know `resume`.
        if not self._fingerprint or not _passes(error):
            return None
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        if now - self._failing_since >= self._seconds:
            return None
        self._prepare()
        self._failures += 1
        if self._failures < self._gateways or (self._failures == 1 and not is_from_gateway(error)):
            return 0.0
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 10))
        return max(pause * random.uniform(0.5, 1.0), retry_hint(error) or 0.0)

    def _prepare(self) -> None:
        """The request with what has come. The caller's own stays as it is."""
        if not self._resuming:
            whole, self._resuming = self.request, True
            self.request = gateway_pb2.GenerateRequest()
            self.request.CopyFrom(whole)
            self.request.explain = False  # the explanation was in the first message
        self.request.resume.token_ids[:] = self._token_ids
        self.request.resume.fingerprint = self._fingerprint


def _passes(error: grpc.aio.AioRpcError) -> bool:
    """Whether another gateway, or the same one a little later, may go on with the answer."""
    if is_from_gateway(error):
        return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return error.code() in _BROKEN
