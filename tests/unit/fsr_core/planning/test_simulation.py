"""The simulated tiers, held against queueing theory and sums that one can do by hand."""

import random
from dataclasses import replace
from statistics import quantiles

import pytest

from fsr_core.planning.service_times import ServiceTimes
from fsr_core.planning.simulation import Deployment, Load, simulate

# No waits for a batch, so that sums are exact.
ALONE = Deployment(batch_seconds=0.0)
TIMES = ServiceTimes(
    gateway=0.01, picture=0.02, tower_batch=0.03, tower=0.04, prefill_pass=0.05, prefill=0.06, step=0.1, step_answer=0.2
)
NOTHING = ServiceTimes(gateway=0.0, picture=0.0, tower=0.0, prefill=0.0, step=0.0, step_answer=0.0)


def test_lone_client_waits_for_nobody():
    seen = simulate(replace(TIMES, delay=0.5), ALONE, 11, Load(clients=1, seconds=60.0))
    first = 0.5 + 0.01 + 0.02 + 0.07 + 0.11
    assert seen.first_token_p50 == pytest.approx(first) == pytest.approx(seen.first_token_p95)
    assert seen.answer_p50 == pytest.approx(first + 10 * 0.3) == pytest.approx(seen.answer_p95)
    assert seen.answers_per_second == pytest.approx(1 / (first + 3.0), rel=0.05)


def test_relayed_tokens_reach_the_caller_later():
    seen = simulate(replace(TIMES, relay_step=0.002, relay=0.001), ALONE, 11, Load(clients=1, seconds=60.0))
    assert seen.answer_p50 == pytest.approx(0.01 + 0.02 + 0.07 + 0.11 + 10 * 0.3 + 0.003)


def test_single_token_answers_need_no_step():
    seen = simulate(TIMES, ALONE, 1, Load(clients=1, seconds=60.0))
    assert seen.first_token_p50 == seen.answer_p50 == pytest.approx(0.21)


def test_one_queue_waits_as_theory_says():
    """M/D/1, by Lindley's recursion over arrivals of its own."""
    service, rate = 0.01, 50.0
    seen = simulate(replace(NOTHING, gateway=service), ALONE, 1, Load(rate=rate, seconds=200.0, seed=1))
    generator, wait, totals = random.Random(2), 0.0, []
    for _ in range(40_000):
        wait = max(0.0, wait + service - generator.expovariate(rate))
        totals.append(wait + service)
    cuts = quantiles(totals, n=100, method="inclusive")
    assert seen.answers_per_second == pytest.approx(rate, rel=0.02)
    assert (seen.answer_p50, seen.answer_p95) == pytest.approx((cuts[49], cuts[94]), rel=0.1)


def test_batch_shares_its_fixed_cost():
    times = replace(NOTHING, tower_batch=1.0, tower=0.1)
    one = simulate(times, ALONE, 1, Load(clients=1, seconds=200.0))
    full = simulate(times, ALONE, 1, Load(rate=20.0, seconds=200.0))
    assert one.answers_per_second == pytest.approx(1 / 1.1, rel=0.05)
    assert full.answers_per_second == pytest.approx(16 / 2.6, rel=0.05)


@pytest.mark.parametrize(("slots", "together"), [(1, 1), (4, 4), (64, 8)])
def test_step_serves_as_many_answers_as_there_are_slots(slots, together):
    times = replace(NOTHING, step=0.1, step_answer=0.01)
    seen = simulate(times, replace(ALONE, answers_at_a_time=slots), 11, Load(clients=8, seconds=200.0))
    assert seen.answers_per_second == pytest.approx(together / (10 * times.step_seconds(together)), rel=0.1)


def test_compute_bounds_the_step_where_it_takes_longer_than_memory():
    times = replace(NOTHING, step=0.1, step_answer=0.01, step_compute=0.05)
    assert [times.step_seconds(n) for n in (1, 2, 4)] == pytest.approx([0.11, 0.12, 0.2])


def test_second_decoder_doubles_the_answers():
    times = replace(NOTHING, prefill=0.1)
    one, two = (simulate(times, replace(ALONE, decoders=n), 1, Load(clients=8, seconds=100.0)) for n in (1, 2))
    assert two.answers_per_second == pytest.approx(2 * one.answers_per_second, rel=0.05)


def test_more_than_the_capacity_queues():
    seen = simulate(replace(NOTHING, prefill=0.1), ALONE, 1, Load(rate=20.0, seconds=50.0))
    assert seen.answers_per_second == pytest.approx(10.0, rel=0.02)
    assert seen.answer_p95 > 20


def test_tiers_on_the_same_cores_slow_each_other():
    """A gateway and a decoder could work at the same time; on one core only their sum counts."""
    times = replace(NOTHING, gateway=0.1, prefill=0.1)
    apart = simulate(times, ALONE, 1, Load(clients=8, seconds=100.0))
    together = simulate(times, replace(ALONE, shared_cores=1.0), 1, Load(clients=8, seconds=100.0))
    assert apart.answers_per_second == pytest.approx(10.0, rel=0.05)
    assert together.answers_per_second == pytest.approx(5.0, rel=0.05)


def test_cores_that_nobody_shares_change_nothing():
    alone, shared = (
        simulate(TIMES, replace(ALONE, shared_cores=cores), 5, Load(clients=1, seconds=30.0)) for cores in (None, 2.0)
    )
    assert alone.answer_p95 == pytest.approx(shared.answer_p95)


def test_other_programs_on_the_cores_take_their_share():
    busy = replace(ALONE, shared_cores=1.0, background=0.5, background_seconds=0.01)
    seen = simulate(replace(NOTHING, prefill=0.1), busy, 1, Load(clients=4, seconds=200.0))
    assert seen.answers_per_second == pytest.approx(5.0, rel=0.1)


def test_same_load_gives_the_same_figures():
    load = Load(rate=2.0, seconds=50.0, seed=3)
    assert simulate(TIMES, ALONE, 5, load) == simulate(TIMES, ALONE, 5, load)
    assert simulate(TIMES, ALONE, 5, load) != simulate(TIMES, ALONE, 5, replace(load, seed=4))


@pytest.mark.parametrize("size", [{}, {"rate": 1.0, "clients": 1}])
def test_load_has_either_a_rate_or_clients(size):
    with pytest.raises(ValueError, match="either a rate or clients"):
        Load(**size)
