"""Which failure leads to another attempt, where, and when it is given up."""

import asyncio
import contextlib
import math
import time

import grpc
import pytest

from fsr.common.errors import Expired, Failed, InvalidRequest, Mismatch, NotReady, Overloaded, ServiceError
from fsr.gateway.callers.auth import ANYBODY
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.requests.request_context import RequestContext
from fsr.gateway.routing.attempts import Attempts, RetryPolicy
from fsr.gateway.routing.circuit_breaker import BreakerPolicy
from fsr.gateway.routing.replica import Replica
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.telemetry.metrics import Metrics
from fsr.gateway.telemetry.request_record import RequestRecord

Code = grpc.StatusCode


@pytest.fixture
async def replicas(clock):
    policy = BreakerPolicy(failures=2, seconds=60, longest=120)
    replicas = [
        Replica(role="decoder", address=f"127.0.0.1:{port}", policy=policy, keepalive_seconds=5.0, clock=clock)
        for port in (8, 9)
    ]
    yield replicas
    for replica in replicas:
        await replica.close()


class Budget(RetryBudget):
    """Counts how often it is asked for a retry."""

    withdrawals = 0

    def withdraw(self, price=1.0):
        self.withdrawals += 1
        return super().withdraw(price)


@pytest.fixture
def attempts(replicas):
    def make(seconds=5.0, burst=10, **options):
        settings = GatewaySettings(retry_burst=burst, retry_ratio=0.0, probe_timeout_seconds=0.1, **options)
        down = set()

        def choose(tried):
            able = [r for r in replicas if r.address not in tried and r.address not in down]
            if not able:
                raise NotReady("decoder: none")
            return able[0]

        policy = RetryPolicy(settings, Metrics(), Budget(0.0, burst))
        context = RequestContext(ANYBODY, Deadline(seconds), RequestRecord(request_id="r"))
        attempts = Attempts(policy, choose, context, lambda: attempts.last_loss)
        attempts.policy, attempts.record, attempts.down = policy, context.record, down
        attempts.last_loss = -math.inf
        return attempts

    return make


def rpc_error(code, details="why"):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


FAULTS = [Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED, Code.ABORTED, Code.DEADLINE_EXCEEDED]


@pytest.mark.parametrize("code", [*FAULTS, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION])
async def test_failure_when_another_replica_may_do_better_goes_there(attempts, replicas, code):
    one = attempts()
    assert await one.next() is replicas[0]
    one.failed(replicas[0], rpc_error(code))
    assert await one.next() is replicas[1]
    assert one.record.retries == 1 and one.failures == (code in FAULTS)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (Code.INVALID_ARGUMENT, "field: wrong", InvalidRequest),
        (Code.UNIMPLEMENTED, "no such rpc", Failed),
    ],
)
async def test_failure_when_all_replicas_would_answer_alike_is_raised_at_once(attempts, code, details, kind):
    one = attempts()
    with pytest.raises(kind):
        one.failed(await one.next(), rpc_error(code, details))


async def test_full_cluster_when_the_answer_has_begun_is_waited_for_else_raised_at_once(attempts, replicas):
    one = attempts()
    for _ in replicas:
        one.failed(await one.next(), rpc_error(Code.RESOURCE_EXHAUSTED))
    with pytest.raises(Overloaded) as caught:
        await one.next()
    assert caught.value.retry_after
    other = attempts(seconds=2.0, burst=0)
    other.received(0)
    for _ in range(4):  # asks again and again, without a budget
        other.failed(await other.next(), rpc_error(Code.RESOURCE_EXHAUSTED))
    other.down.update(replica.address for replica in replicas)
    with pytest.raises(Expired):
        await other.next()


async def test_cut_answer_when_it_meets_another_checkpoint_goes_elsewhere(attempts, replicas):
    one = attempts(failover_wait_seconds=0.2)
    one.received(0)
    one.failed(await one.next(), rpc_error(Code.FAILED_PRECONDITION))
    assert await one.next() is replicas[1]
    one.down.update(replica.address for replica in replicas)
    one.failed(replicas[1], rpc_error(Code.FAILED_PRECONDITION))
    with pytest.raises(Mismatch):  # after a wait for the right one
        await one.next()


async def test_spent_budget_when_the_answer_has_not_begun_ends_the_request(attempts):
    one = attempts(burst=1)
    for _ in range(2):
        one.failed(await one.next(), rpc_error(Code.INTERNAL))
    with pytest.raises(NotReady, match="failed"):
        await one.next()


def refused(attempts):
    return attempts.policy.metrics.registry.get_sample_value("fsr_admission_refused_total", {"reason": "retry_budget"})


async def test_spent_budget_when_a_request_waited_long_counts_one_refusal(attempts):
    new = attempts(burst=0)
    new.failed(await new.next(), rpc_error(Code.INTERNAL))
    with pytest.raises(NotReady):
        await new.next()
    begun = attempts(burst=0, failover_wait_seconds=0.3)
    begun.received(0)
    begun.failed(await begun.next(), rpc_error(Code.INTERNAL))
    with pytest.raises(NotReady):
        await begun.next()
    assert begun.policy.budget.withdrawals > 2 and refused(new) == refused(begun) == 1


async def test_spent_budget_when_a_retry_comes_in_time_counts_no_refusal(attempts):
    one = attempts()
    one.received(0)
    granted = [False, False, True]
    one.policy.budget.withdraw = lambda price: granted.pop(0)
    one.failed(await one.next(), rpc_error(Code.INTERNAL))
    assert await one.next()
    assert not granted and refused(one) == 0


async def test_request_when_it_fails_everywhere_is_given_up(attempts):
    one, calls = attempts(max_failovers=2), 0
    with pytest.raises(NotReady):
        while True:
            one.failed(await one.next(), rpc_error(Code.INTERNAL))
            calls += 1
    assert calls == 3


async def test_request_when_each_call_goes_on_a_little_is_not_given_up(attempts):
    """A connection that breaks again and again, as opposed to a prompt that no decoder survives."""
    one = attempts(max_failovers=2, burst=20)
    for _ in range(20):
        replica = await one.next()
        one.received(1)
        one.received(1)
        one.failed(replica, rpc_error(Code.UNAVAILABLE))
    assert one.failures == 20
    poisonous, calls = attempts(max_failovers=2), 0
    with pytest.raises(NotReady):
        while True:
            replica = await poisonous.next()
            poisonous.received(1)  # the prefill's
            poisonous.failed(replica, rpc_error(Code.UNAVAILABLE))
            calls += 1
    assert calls == 3


async def test_call_that_has_brought_more_makes_the_next_one_cost_less(attempts):
    one, prices = attempts(), []
    one.policy.budget.withdraw = lambda price: prices.append(price) or True
    for tokens in (0, 2, 4, 8, 99, 0):
        replica = await one.next()
        one.received(tokens)
        one.failed(replica, rpc_error(Code.INTERNAL))
    await one.next()
    assert prices == [1, 0.75, 0.5, 0, 0, 1]


async def test_new_request_when_the_only_replica_was_just_lost_waits_for_it(attempts, replicas):
    one = attempts(failover_wait_seconds=30)
    one.down.update(replica.address for replica in replicas)
    with pytest.raises(NotReady):  # there never was one
        await one.next()
    one.last_loss = time.monotonic() - 31
    with pytest.raises(NotReady):
        await one.next()
    one.last_loss = time.monotonic()
    waiting = asyncio.create_task(one.next())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    one.down.clear()
    assert await waiting is replicas[0]
    assert one.record.retries == one.policy.budget.withdrawals == 0


async def test_new_request_when_its_deadline_comes_before_the_replica_says_what_is_missing(attempts, replicas):
    one = attempts(seconds=0.5)
    one.down.update(replica.address for replica in replicas)
    one.last_loss = time.monotonic()
    with pytest.raises(NotReady, match="decoder: none"):
        await one.next()


async def test_missing_replica_when_it_does_not_come_back_is_raised_after_the_wait(attempts, replicas):
    one = attempts(failover_wait_seconds=0.2)
    one.failed(await one.next(), rpc_error(Code.UNAVAILABLE))
    one.down.update(replica.address for replica in replicas)
    with pytest.raises(NotReady, match=r"^decoder: a replica failed \(UNAVAILABLE\); try again$"):
        await one.next()


async def test_failures_when_the_breaker_opens_close_it_only_by_success(attempts, replicas, clock):
    victim = replicas[0]
    for _ in range(2):
        one = attempts()
        with victim.calling() as call:
            one.failed(victim, rpc_error(Code.INTERNAL), call)
    assert victim.breaker.state == "open"
    clock.now += 60
    assert victim.breaker.allows_call
    with victim.calling() as call:
        one.failed(victim, rpc_error(Code.INTERNAL), call)
    assert victim.breaker.state == "open"
    clock.now += 119
    assert victim.breaker.state == "open"  # for twice as long
    clock.now += 1
    with contextlib.suppress(ServiceError), victim.calling() as call:
        one.failed(victim, rpc_error(Code.INVALID_ARGUMENT), call)  # says nothing about the replica
    assert victim.breaker.state == "half-open" and victim.breaker.allows_call


async def test_deadline_when_it_has_passed_ends_the_request_and_blames_no_replica(attempts):
    one = attempts(seconds=0.0)
    with pytest.raises(Expired, match="deadline: passed before the decoder had answered; allow more time"):
        one.failed(await one.next(), rpc_error(Code.DEADLINE_EXCEEDED))
    assert not one.failures
