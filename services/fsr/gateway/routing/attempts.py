"""One request's choice of replicas: another one after each failure, for as long as that makes sense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import grpc
import structlog

from fsr.common.errors import InvalidRequest, Mismatch, NotReady, Overloaded, ServiceError, from_rpc, retry_after
from fsr.gateway.deadline import Deadline
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.circuit_breaker import Trial
from fsr.gateway.routing.replica import Replica
from fsr.gateway.routing.retry_budget import RetryBudget, backoff
from fsr.gateway.settings import GatewaySettings

__all__ = ["Attempts", "Retrying"]

log = structlog.get_logger()
Code = grpc.StatusCode
_RETRY_AFTER = 0.5  # seconds, where a full replica gives no hint of its own
# What a replica or the way to it may be to blame for. Anything else another replica would answer alike.
_FAULTS = {Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED, Code.ABORTED, Code.DATA_LOSS}


@dataclass(frozen=True)
class Retrying:
    """What all requests share. Where they are `aside`, what becomes of them is no reason to choose other replicas."""

    settings: GatewaySettings
    metrics: Metrics
    budget: RetryBudget
    aside: bool = False


@dataclass
class Attempts:
    """`next` gives the replica to ask, in `calling`; `succeeded`, or `failed` and `fault`, say how it went.

    Set `started` once part of the answer is with the caller: from then on a full cluster is waited for as long as the
    deadline allows, and a spent retry budget as long as a missing replica, because giving up costs what was said.
    """

    shared: Retrying
    choose: Callable[[Collection[str]], Replica]
    deadline: Deadline
    trail: Trail
    started: bool = False
    failures: int = 0
    _tried: set[str] = field(default_factory=set)
    _rounds: int = 0
    _last: ServiceError | None = None
    _give_up: float = 0.0

    async def next(self) -> Replica:
        """Raises the last failure, or Mismatch, NotReady or Expired, where there is no sense in another attempt."""
        if self._last is None:
            return self.choose(())
        if self.failures > self.shared.settings.max_failovers:
            raise self._last
        while True:
            replica = self._untried()
            full = isinstance(self._last, Overloaded)
            if replica is None and full and not self.started:
                raise self._last  # every replica is full: the caller is told at once
            # An answer that was cut asks full replicas again and again: they refuse at no cost, and it must not lose
            # its place to newcomers for want of budget.
            if replica is not None and ((full and self.started) or self.shared.budget.withdraw()):
                self.trail.retries += 1
                self.shared.metrics.retries.labels(replica.role).inc()
                return replica
            spent = replica is not None
            if time.monotonic() >= self._give_up or (spent and not self.started):
                if spent:
                    self.shared.metrics.refused.labels("retry_budget").inc()
                raise self._last
            await asyncio.sleep(min(backoff(self._rounds), self.deadline.left()))
            self._rounds += 1
            self._tried.clear()

    def calling(self, replica: Replica) -> AbstractContextManager[Trial | None]:
        """For the length of one call to it, as `Replica.working`."""
        return replica.working(may_try=not self.shared.aside)

    def succeeded(self, replica: Replica) -> None:
        if not self.shared.aside:
            replica.ejection.succeeded()

    def failed(self, replica: Replica, error: grpc.aio.AioRpcError, trial: Trial | None = None) -> None:
        """Raises the error where another replica could not do better. `trial`: as `calling` gave it."""
        code, details = error.code(), error.details() or ""
        if code == Code.RESOURCE_EXHAUSTED:
            if "larger than max" in details:
                raise InvalidRequest(f"images: their tokens are too many bytes for one message ({details}); keep fewer")
            wait = float("inf") if self.started else 0.0
            self._note(replica, Overloaded(details, retry_after(error) or _RETRY_AFTER), wait)
        elif code in _FAULTS or (code == Code.DEADLINE_EXCEEDED and not self.deadline.passed):
            self.fault(replica, f"failed ({code.name}: {details})", trial, gone=code == Code.UNAVAILABLE)
        elif code == Code.FAILED_PRECONDITION:
            if not self.shared.aside:
                replica.down("holds another checkpoint")
            wait = self.shared.settings.failover_wait_seconds if self.started else 0.0
            self._note(replica, from_rpc(error, replica.role), wait)
        else:
            raise from_rpc(error, replica.role) from error

    def fault(self, replica: Replica, reason: str, trial: Trial | None, gone: bool) -> None:
        """The replica is to blame, and where it is `gone` not asked again before a probe has found it well."""
        if not self.shared.aside:
            self._blame(replica, reason, trial, gone)
        self.failures += 1
        told = NotReady(f"{replica.role}: {replica.address} {reason}; try again", 1.0)
        self._note(replica, told, self.shared.settings.failover_wait_seconds)

    def _blame(self, replica: Replica, reason: str, trial: Trial | None, gone: bool) -> None:
        log.warning("failover", replica=replica.address, reason=reason, started=self.started)
        if gone:
            replica.suspect(self.shared.settings.probe_timeout_seconds)
        if replica.ejection.failed(trial):
            log.warning("replica ejected", role=replica.role, address=replica.address)
            self.shared.metrics.ejections.labels(replica.role).inc()

    def _note(self, replica: Replica, error: ServiceError, wait: float) -> None:
        self._tried.add(replica.address)
        self._last, self._give_up = error, time.monotonic() + wait

    def _untried(self) -> Replica | None:
        try:
            return self.choose(self._tried)
        except (Mismatch, NotReady):
            return None
