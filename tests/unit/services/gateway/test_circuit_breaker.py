"""When a circuit breaker opens, and what closes it again."""

from fsr.gateway.routing.circuit_breaker import BreakerPolicy, CircuitBreaker


def test_breaker_when_failures_come_in_a_row_opens_for_twice_as_long_each_time(clock):
    breaker = CircuitBreaker(BreakerPolicy(failures=3, seconds=1, longest=3), clock)
    assert [breaker.failed() for _ in range(2)] == [False, False]
    breaker.succeeded()  # not in a row any more
    assert [breaker.failed() for _ in range(3)] == [False, False, True]
    for length in (1, 2, 3, 3):
        assert not breaker.allows_call and breaker.state == "open"
        clock.now += length - 0.01
        assert not breaker.allows_call and breaker.state == "open"
        clock.now += 0.01
        assert breaker.allows_call and breaker.state == "half-open"
        call = breaker.call_started()
        assert call and not breaker.allows_call and not breaker.call_started()  # no second call beside it
        assert breaker.failed(call)
    clock.now += 3
    breaker.call_started()
    breaker.succeeded()
    assert breaker.allows_call and breaker.state == "closed"
    assert [breaker.failed() for _ in range(3)] == [False, False, True]
    clock.now += 1
    assert breaker.allows_call  # the first time open is short again


def test_breaker_when_a_replica_fails_for_days_still_gets_half_open(clock):
    breaker = CircuitBreaker(BreakerPolicy(failures=1, seconds=1.0, longest=60.0), clock)
    for _ in range(1100):
        assert breaker.failed(breaker.call_started())
        clock.now += 60
    assert breaker.allows_call


def test_breaker_when_calls_from_before_it_opened_fail_does_not_open_longer(clock):
    breaker = CircuitBreaker(BreakerPolicy(failures=1, seconds=1), clock)
    assert breaker.failed()
    assert not breaker.failed() and not breaker.failed()
    clock.now += 1
    assert breaker.allows_call


def test_breaker_when_the_half_open_call_ends_without_verdict_lets_another_through(clock):
    breaker = CircuitBreaker(BreakerPolicy(failures=1, seconds=1), clock)
    assert breaker.failed()
    clock.now += 1
    first = breaker.call_started()
    breaker.call_ended(None)  # of another call
    assert not breaker.failed() and not breaker.allows_call  # the half-open call goes on
    breaker.call_ended(first)
    second = breaker.call_started()
    breaker.call_ended(first)
    assert not breaker.failed(first) and not breaker.allows_call  # the second is the half-open call now
    assert breaker.failed(second)
    clock.now += 1
    assert not breaker.allows_call  # open for twice as long
