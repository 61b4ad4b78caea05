"""Which failure leads to another attempt, where, and when it is given up."""

import contextlib

import grpc
import pytest

from fsr.common.errors import Expired, Failed, InvalidRequest, Mismatch, NotReady, Overloaded, ServiceError
from fsr.gateway.deadline import Deadline
from fsr.gateway.metrics import Metrics
from fsr.gateway.request_record import Trail
from fsr.gateway.routing.attempts import Attempts, Retrying
from fsr.gateway.routing.circuit_breaker import EjectionPolicy
from fsr.gateway.routing.replica import Replica
from fsr.gateway.routing.retry_budget import RetryBudget
from fsr.gateway.settings import GatewaySettings

Code = grpc.StatusCode


@pytest.fixture
async def replicas():
    made = [Replica("decoder", f"127.0.0.1:{port}", EjectionPolicy(failures=2, seconds=60), 5.0) for port in (8, 9)]
    yield made
    for replica in made:
        await replica.channel.close(None)


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

        shared = Retrying(settings, Metrics(), RetryBudget(0.0, burst))
        made = Attempts(shared, choose, Deadline(seconds), Trail("r"))
        made.down = down
        return made

    return make


def rpc_error(code, details="why"):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


FAULTS = [Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED, Code.ABORTED, Code.DEADLINE_EXCEEDED]


@pytest.mark.parametrize("code", [*FAULTS, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION])
async def test_what_another_replica_may_do_better_goes_to_another(attempts, replicas, code):
    one = attempts()
    assert await one.next() is replicas[0]
    one.failed(replicas[0], rpc_error(code))
    assert await one.next() is replicas[1]
    assert one.trail.retries == 1 and one.failures == (code in FAULTS)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (Code.INVALID_ARGUMENT, "field: wrong", InvalidRequest),
        (Code.UNIMPLEMENTED, "no such rpc", Failed),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 5)", InvalidRequest),
    ],
)
async def test_what_every_replica_would_answer_alike_is_told_at_once(attempts, code, details, kind):
    one = attempts()
    with pytest.raises(kind):
        one.failed(await one.next(), rpc_error(code, details))


async def test_a_full_cluster_is_told_at_once_before_the_first_token_and_waited_for_after_it(attempts, replicas):
    one = attempts()
    for _ in replicas:
        one.failed(await one.next(), rpc_error(Code.RESOURCE_EXHAUSTED))
    with pytest.raises(Overloaded) as caught:
        await one.next()
    assert caught.value.retry_after
    other = attempts(seconds=2.0, burst=0)
    other.started = True
    for _ in range(4):  # asks again and again, without a budget
        other.failed(await other.next(), rpc_error(Code.RESOURCE_EXHAUSTED))
    other.down.update(replica.address for replica in replicas)
    with pytest.raises(Expired):
        await other.next()


async def test_a_cut_answer_that_meets_another_checkpoint_goes_on_elsewhere(attempts, replicas):
    one = attempts(failover_wait_seconds=0.2)
    one.started = True
    one.failed(await one.next(), rpc_error(Code.FAILED_PRECONDITION))
    assert await one.next() is replicas[1]
    one.down.update(replica.address for replica in replicas)
    one.failed(replicas[1], rpc_error(Code.FAILED_PRECONDITION))
    with pytest.raises(Mismatch):  # once it has been waited for the right one
        await one.next()


async def test_a_spent_budget_ends_a_request_that_has_not_begun(attempts):
    one = attempts(burst=1)
    for _ in range(2):
        one.failed(await one.next(), rpc_error(Code.INTERNAL))
    with pytest.raises(NotReady, match="failed"):
        await one.next()


def refused(attempts):
    return attempts.shared.metrics.registry.get_sample_value("fsr_admission_refused_total", {"reason": "retry_budget"})


async def test_a_spent_budget_refuses_a_request_once_however_long_it_waited(attempts):
    new = attempts(burst=0)
    new.failed(await new.next(), rpc_error(Code.INTERNAL))
    with pytest.raises(NotReady):
        await new.next()
    begun = attempts(burst=0, failover_wait_seconds=0.3)
    begun.started = True
    begun.failed(await begun.next(), rpc_error(Code.INTERNAL))
    with pytest.raises(NotReady):
        await begun.next()
    assert begun._rounds > 1 and refused(new) == refused(begun) == 1


async def test_an_answer_that_gets_a_retry_in_the_end_was_not_refused(attempts):
    one = attempts()
    one.started = True
    one.shared.budget.withdraw = iter([False, False, True]).__next__
    one.failed(await one.next(), rpc_error(Code.INTERNAL))
    assert await one.next()
    assert one._rounds == 2 and refused(one) == 0


async def test_a_request_that_fails_everywhere_is_given_up(attempts):
    one, asked = attempts(max_failovers=2), 0
    with pytest.raises(NotReady):
        while True:
            one.failed(await one.next(), rpc_error(Code.INTERNAL))
            asked += 1
    assert asked == 3


async def test_a_missing_replica_is_waited_for_as_long_as_is_allowed(attempts, replicas):
    one = attempts(failover_wait_seconds=0.2)
    one.failed(await one.next(), rpc_error(Code.UNAVAILABLE))
    one.down.update(replica.address for replica in replicas)
    with pytest.raises(NotReady, match=r"127\.0\.0\.1:8 failed \(UNAVAILABLE: why\); try again"):
        await one.next()


async def test_failures_eject_and_a_failed_trial_ejects_for_longer(attempts, replicas):
    victim = replicas[0]
    for _ in range(2):
        one = attempts()
        with victim.working() as trial:
            one.failed(victim, rpc_error(Code.INTERNAL), trial)
    assert victim.ejection.out and not victim.ejection.admits
    victim.ejection._until = 0.0  # its time is over
    assert victim.ejection.admits
    with victim.working() as trial:
        one.failed(victim, rpc_error(Code.INTERNAL), trial)
    assert not victim.ejection.admits
    victim.ejection._until = 0.0
    with contextlib.suppress(ServiceError), victim.working() as trial:
        one.failed(victim, rpc_error(Code.INVALID_ARGUMENT), trial)  # tells nothing about the replica
    assert victim.ejection.admits
