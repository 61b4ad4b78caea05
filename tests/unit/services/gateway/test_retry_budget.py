from fsr.gateway.routing.retry_budget import RetryBudget, backoff


def test_retry_budget_when_everything_fails_is_a_share_of_the_load(clock):
    budget = RetryBudget(ratio=0.2, burst=10, clock=clock)
    retries = 0
    for _ in range(1000):
        budget.deposit()
        while budget.withdraw():
            retries += 1
    assert 0.2 * 1000 <= retries <= 0.2 * 1000 + 10
    clock.now += 5
    assert sum(budget.withdraw() for _ in range(20)) == 5  # time refills it slowly
    clock.now += 1000
    assert sum(budget.withdraw() for _ in range(20)) == 10  # up to the burst


def test_backoff_doubles_up_to_a_bound():
    for attempt in range(12):
        most = min(2.0, 0.05 * 2**attempt)
        assert all(most / 2 <= backoff(attempt) <= most for _ in range(20))
    assert 1.0 <= backoff(5000) <= 2.0  # two hours of a full cluster
