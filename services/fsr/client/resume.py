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
_MOST_LOSSES = 8  # connections in a row that broke before anything came; a request must not end gateway after gateway
# What gRPC itself says when a connection breaks, or when its server stops.
_BROKEN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
# How its details begin where there was no connection. It has no code for that.
_UNREACHABLE = ("failed to connect", "DNS resolution failed", "Name resolution failure")


def check_seconds(seconds: float) -> float:
    """Raises InvalidRequestError unless it is a number of seconds from 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not isfinite(seconds) or seconds < 0:
        remedy = "give a number such as 30, or 0 to get an error when a gateway dies"
        raise InvalidRequestError(f"resume_seconds: {seconds!r} is no number of seconds; {remedy}")
    return float(seconds)


class Repetition:
    """Whether a call is made again, and when.

    A call that has brought nothing is made once at each gateway. If its connection broke, it waits for a gateway, as a
    stream that has begun does after each failure. A gateway that nobody could reach from the start is not waited for.
    """

    def __init__(self, gateways: int, seconds: float) -> None:
        """A call waits at most `seconds` without progress."""
        self._gateways, self._seconds = gateways, seconds
        self._begun = self._reached = False
        self._failures = self._losses = 0  # in a row, without progress between
        self._failing_since = 0.0

    def progress(self) -> None:
        """The call has brought something."""
        self._begun = True
        self._failures = self._losses = 0

    def pause(self, error: grpc.aio.AioRpcError) -> float | None:
        """Counts a failure. Seconds until the next call; None if there is none."""
        if not _passes(error):
            return None
        now, ours = time.monotonic(), is_from_gateway(error)
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        lost = not ours and not (error.details() or "").startswith(_UNREACHABLE)
        self._losses += lost
        self._reached = self._reached or lost
        if not self._begun and self._failures < self._gateways:
            return 0.0
        if not self._begun and not self._reached:
            return None
        if self._losses > _MOST_LOSSES or now - self._failing_since >= self._seconds:
            return None
        if self._failures < self._gateways or (self._failures == 1 and lost):
            return 0.0
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._failures, 10))
        return max(pause * random.uniform(0.5, 1.0), retry_hint(error) or 0.0)


class Resumption:
    """One answer, over as many streams as it takes.

    `request` is what the next call sends. `count` is the number of streams that went on with the answer so far.
    """

    def __init__(self, request: gateway_pb2.GenerateRequest, repetition: Repetition) -> None:
        self.request, self.count = request, 0
        self._repetition = repetition
        self._token_ids = list(request.resume.token_ids)
        self._fingerprint = ""
        self._resuming = False  # `request` says so
        self._begun = self._answered = False  # the answer, the stream of the last call

    def received(self, message: gateway_pb2.GenerateResponse) -> None:
        """Raises ServerError if the gateway began the answer anew."""
        if not self._answered:
            self.count += self._resuming
            if self._resuming and not message.fingerprint:
                reason = "the one that was asked to go on with the answer cannot, and began it anew"
                raise ServerError(f"gateway: {reason}; let all gateways have the version of the newest")
            self._fingerprint = self._fingerprint or message.fingerprint
        self._answered = self._begun = True
        self._repetition.progress()
        self._token_ids.extend(message.token_ids)

    def pause(self, error: grpc.aio.AioRpcError) -> float | None:
        """Seconds until the next call, with which the caller makes up for this failure; None if there is none."""
        self._answered = False
        if self._begun and not self._fingerprint:
            return None  # the gateway is too old to know `resume`
        pause = self._repetition.pause(error)
        if pause is not None and self._begun:
            self._prepare()
        return pause

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
    """Whether another gateway, or the same one a little later, may do better."""
    if is_from_gateway(error):
        return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return error.code() in _BROKEN
