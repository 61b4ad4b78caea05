"""One hop of a request: the replica to call, and another one after each failure, for as long as that makes sense."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import grpc
import structlog

from fsr.common.errors import Expired, Mismatch, NotReady, Overloaded, ServiceError, from_rpc, retry_after, status_of
from fsr.common.telemetry.spans import NO_SPAN
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.circuit_breaker import HalfOpenCall
from fsr.gateway.routing.replica import Replica
from fsr.gateway.routing.retry_budget import RetryBudget, backoff
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.trace_attributes import retry_attributes

__all__ = ["Attempts", "RetryPolicy"]

log = structlog.get_logger()
Code = grpc.StatusCode
_RETRY_AFTER_FULL = 0.5  # seconds, if a full replica gives no hint itself
_RETRY_AFTER_FAULT = 1.0  # seconds
_PROGRESS_TOKENS = 2  # of a call that got further than its prefill; a prompt that breaks decoders does not
_WORTH_TOKENS = 8  # of a call; the next one costs no retry budget then, for the work of this one was not in vain
_LONGEST_PAUSE, _LONGEST_PAUSE_FULL = 0.25, 2.0  # seconds between two looks for a replica, and for one with room
_METHODS = {"encoder": "fsr.v1.EncoderService/Encode", "decoder": "fsr.v1.DecoderService/Decode"}
# Codes that the replica or the connection to it may be the cause of. With any other, all replicas answer alike.
_FAULTS = {
    Code.UNAVAILABLE,
    Code.INTERNAL,
    Code.UNKNOWN,
    Code.CANCELLED,
    Code.ABORTED,
    Code.DATA_LOSS,
    Code.NOT_FOUND,  # Serve's proxy says so while its application is not deployed
}


@dataclass(frozen=True)
class RetryPolicy:
    """What the hops of all requests share.

    If `judges_replicas` is False, neither success nor failure of these requests changes which replicas other requests
    get: no circuit breaker hears of them, and no replica goes down by them.
    """

    settings: GatewaySettings
    metrics: Metrics
    budget: RetryBudget
    judges_replicas: bool = True


class Attempts:
    """`next` gives the replica to call, within `calling`. `received` reports what the call brought; `succeeded`,
    `failed` and `fault` report how it ended.

    `started` is true once the caller has a part of the answer. From then on giving up loses what the caller has, so the
    hop waits for a full cluster until the deadline, and for more retry budget as long as for a missing replica.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        choose: Callable[[Collection[str]], Replica],
        context: RequestContext,
        last_loss: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        """`choose` returns a replica at none of the given addresses, or raises Mismatch or NotReady. `last_loss` tells
        when one was last found to be down, by `time.monotonic`."""
        self._policy, self._choose, self._context, self._last_loss = policy, choose, context, last_loss
        self.started = False
        self.failures = 0  # of replicas; a full one has not failed
        self._failures_in_row = 0  # without progress between
        self._tokens = 0  # that the last call has brought
        self._price = 1.0  # of the next one, in retries
        self.span = NO_SPAN  # of the last call
        self._tried: set[str] = set()
        self._rounds = 0
        self._last_error: ServiceError | None = None
        self._give_up_at = 0.0
        self._outcome = ("", "")  # code of the last call, and the reason

    async def next(self) -> Replica:
        """Waits for a replica if need be. Raises the last failure if there is no sense in another attempt, and
        Mismatch, NotReady or Expired."""
        if self._last_error is None:
            return await self._first()
        if self._failures_in_row > self._policy.settings.max_failovers:
            raise self._last_failure()
        while True:
            replica = self._untried()
            full = isinstance(self._last_error, Overloaded)
            if replica is None and full and not self.started:
                raise self._last_failure()  # all replicas are full: the caller hears it at once
            # A cut answer calls full replicas again and again, without the budget: they refuse at no cost, and a spent
            # budget must not give its place to newcomers.
            if replica is not None and ((full and self.started) or self._policy.budget.withdraw(self._price)):
                self._context.record.retries += 1
                self._policy.metrics.retries.labels(replica.role).inc()
                attributes = retry_attributes(role=replica.role, replica=replica.address, reason=str(self._last_error))
                self._context.span.event("retry", attributes)
                return replica
            budget_spent = replica is not None
            if time.monotonic() >= self._give_up_at or (budget_spent and not self.started):
                if budget_spent:
                    self._policy.metrics.refused.labels("retry_budget").inc()
                raise self._last_failure()
            await self._pause(_LONGEST_PAUSE_FULL if full else _LONGEST_PAUSE)
            self._tried.clear()

    async def _first(self) -> Replica:
        """The replica of the first call. If there is none, but one was lost a moment ago, it may be back soon."""
        while True:
            try:
                return self._choose(())
            except NotReady:
                end = self._last_loss() + self._policy.settings.failover_wait_seconds
                if time.monotonic() >= end or self._context.deadline.seconds_left <= _LONGEST_PAUSE:
                    raise
            await self._pause(_LONGEST_PAUSE)

    async def _pause(self, longest: float) -> None:
        await asyncio.sleep(min(backoff(self._rounds, longest=longest), self._context.deadline.remaining()))
        self._rounds += 1

    @contextmanager
    def calling(self, replica: Replica) -> Iterator[HalfOpenCall | None]:
        """Surrounds one call, as `Replica.calling`; yields what `failed` and `fault` take as `half_open_call`."""
        self.span = self._context.span.call(_METHODS[replica.role], replica.address)
        self._outcome = ("CANCELLED", "")  # if none is reported, the caller has gone
        try:
            with replica.calling(judged=self._policy.judges_replicas) as half_open_call:
                yield half_open_call
        except ServiceError as error:
            self._outcome = (status_of(error).name, str(error))
            raise
        finally:
            self.span.end(*self._outcome)

    def received(self, tokens: int) -> None:
        """A message with so many tokens of the answer came."""
        self.started = True
        self._tokens += tokens

    def succeeded(self, replica: Replica) -> None:
        """The call went well."""
        self._outcome = ("OK", "")
        if self._policy.judges_replicas:
            replica.breaker.succeeded()

    def failed(self, replica: Replica, error: grpc.aio.AioRpcError, half_open_call: HalfOpenCall | None = None) -> None:
        """The call failed with a gRPC status. Raises ServiceError if another replica would not do better."""
        code, details = error.code(), error.details() or ""
        if code in (Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED) and self._context.deadline.passed:
            remedy = "allow more time or add replicas"
            raise Expired(f"deadline: passed before the {replica.role} had answered; {remedy}") from error
        if code == Code.RESOURCE_EXHAUSTED:
            if replica.role == "encoder":  # else it may be Serve that speaks, of its own queues
                details = "encoder: has no room for more requests; try again or add replicas"
            wait = float("inf") if self.started else 0.0
            self._note(replica, Overloaded(details, retry_after(error) or _RETRY_AFTER_FULL), wait)
        elif code in _FAULTS or code == Code.DEADLINE_EXCEEDED:
            gone = code == Code.UNAVAILABLE
            self.fault(replica, f"failed ({code.name})", half_open_call, gone=gone, details=details)
        elif code == Code.FAILED_PRECONDITION:
            if self._policy.judges_replicas:
                replica.down("holds another checkpoint")
            wait = self._policy.settings.failover_wait_seconds if self.started else 0.0
            self._note(replica, from_rpc(error, replica.role), wait)
        else:
            raise from_rpc(error, replica.role) from error

    def fault(
        self, replica: Replica, reason: str, half_open_call: HalfOpenCall | None, gone: bool, details: str = ""
    ) -> None:
        """The call failed by the replica's fault. If the replica is `gone`, it gets no call until a probe succeeds.

        The caller may hear the `reason`. Address and `details`, which may hold a traceback, are for the log alone.
        """
        if self._policy.judges_replicas:
            log.warning("failover", replica=replica.address, reason=reason, details=details, started=self.started)
            if gone:
                settings = self._policy.settings
                replica.suspect(settings.probe_timeout_seconds, settings.failover_wait_seconds)
            if replica.breaker.failed(half_open_call):
                log.warning("circuit breaker open", role=replica.role, address=replica.address)
                self._policy.metrics.ejections.labels(replica.role).inc()
        self.failures += 1
        self._failures_in_row = 1 if self._tokens >= _PROGRESS_TOKENS else self._failures_in_row + 1
        error = NotReady(f"{replica.role}: a replica {reason}; try again", _RETRY_AFTER_FAULT)
        self._note(replica, error, self._policy.settings.failover_wait_seconds)

    def _last_failure(self) -> ServiceError:
        """The last failure, which is kept here no longer: raised, it would keep itself, and the request with it."""
        error, self._last_error = self._last_error, None
        return cast("ServiceError", error)

    def _note(self, replica: Replica, error: ServiceError, wait: float) -> None:
        """Another replica may do better; one is waited for during `wait` seconds."""
        self._price = max(0.0, 1.0 - self._tokens / _WORTH_TOKENS)
        if self._tokens:
            self._tokens = self._rounds = 0
        self._tried.add(replica.address)
        self._last_error, self._give_up_at = error, time.monotonic() + wait
        self._outcome = (status_of(error).name, str(error))

    def _untried(self) -> Replica | None:
        try:
            return self._choose(self._tried)
        except (Mismatch, NotReady):
            return None
