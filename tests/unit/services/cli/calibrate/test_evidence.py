"""The bets behind `fsr calibrate`: what they may claim wrongly, and how soon they claim what is true."""

import math
from itertools import product

import pytest

from fsr.cli.calibrate.evidence import Evidence, fewest_questions


def evidence(pairs, relative=False):
    made = Evidence(relative)
    for pair in pairs:
        made.add(*pair)
    return made


def crossed_ever(share, target, questions, alpha=0.05):
    """The probability that a budget with this share of equal answers is ever said to keep the target, exactly.

    One looks after each question. The capital depends on the number of equal answers alone.
    """
    alive, crossed = {0: 1.0}, 0.0
    for asked in range(1, questions + 1):
        after = {}
        for equal, probability in alive.items():
            after[equal] = after.get(equal, 0.0) + probability * (1 - share)
            after[equal + 1] = after.get(equal + 1, 0.0) + probability * share
        alive = {}
        for equal, probability in after.items():
            made = Evidence()
            made._count.update({(1.0, 1.0): equal, (0.0, 1.0): asked - equal})
            if made.capital(target) >= 1 / alpha:
                crossed += probability
            else:
                alive[equal] = probability
    return crossed


@pytest.mark.parametrize("share", [0.9, 0.85])
def test_capital_when_the_target_is_not_kept_reaches_the_bound_in_at_most_alpha_of_runs(share):
    probability = crossed_ever(share, 0.9, 60)
    assert probability <= 0.05
    assert probability > 0.005 or share < 0.9  # it is no bound that nothing could ever meet


def test_capital_when_the_target_is_kept_reaches_the_bound_soon():
    assert crossed_ever(1.0, 0.9, 40) == 1
    assert crossed_ever(0.99, 0.8, 60) > 0.99


@pytest.mark.parametrize("relative", [False, True])
def test_expected_capital_when_the_mean_gain_is_zero_is_one(relative):
    """Over all sequences of three questions, also for scores between 0 and 1: so no look at it can be too early."""
    target = 0.8
    if relative:  # scores and references, with their probabilities; the mean gain is 0
        outcomes = {(1.0, 1.0): 0.5, (0.5, 0.25): 0.25, (0.0, 1.0): 0.25 * 0.5 / 0.8 + 0.0}
        gain = sum(p * (s - target * r) for (s, r), p in outcomes.items())
        outcomes[0.0, 1.0] += gain / target
        outcomes[0.0, 0.0] = 1 - sum(outcomes.values())
    else:
        outcomes = {(1.0, 1.0): 0.7, (0.4, 1.0): 0.25, (0.0, 1.0): 0.05}
        target = sum(p * s for (s, _), p in outcomes.items())
    assert all(p >= 0 for p in outcomes.values()) and sum(outcomes.values()) == pytest.approx(1)
    for kind in (Evidence.capital, Evidence.doubt):
        expected = sum(
            math.prod(outcomes[pair] for pair in pairs) * kind(evidence(pairs, relative), target)
            for pairs in product(outcomes, repeat=3)
        )
        assert expected == pytest.approx(1)


def test_capital_does_not_depend_on_the_order():
    pairs = [(1.0, 1.0), (0.0, 1.0), (0.5, 1.0)]
    assert evidence(pairs).capital(0.9) == pytest.approx(evidence(pairs[::-1]).capital(0.9))


def test_interval_when_a_target_is_shown_begins_at_or_above_it():
    scores = evidence([(1.0, 1.0)] * 96 + [(0.0, 1.0)] * 4)
    low, high = scores.interval(0.05)
    assert low < 0.96 < high and scores.mean == pytest.approx(0.96)
    for target in (low - 0.001, low + 0.001):
        assert (scores.capital(target) >= 20) == (target < low)
    for target in (high - 0.001, high + 0.001):
        assert (scores.doubt(target) >= 20) == (target > high)


def test_relative_mean_is_a_share_of_what_all_tokens_reach():
    scores = evidence([(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (1.0, 0.0)] * 3, relative=True)
    assert scores.mean == 1.0
    assert math.isnan(evidence([(0.0, 0.0)], relative=True).mean)


def test_interval_when_nothing_was_asked_says_nothing():
    assert Evidence().interval(0.05) == pytest.approx((0.0, 1.0))


def test_doubt_when_the_target_is_1_is_certain_after_one_wrong_answer():
    assert evidence([(1.0, 1.0)]).doubt(1.0) == 1
    assert evidence([(1.0, 1.0), (0.0, 1.0)]).doubt(1.0) == math.inf


@pytest.mark.parametrize(("target", "count"), [(0.5, 6), (0.9, 36), (0.98, 188)])
def test_fewest_questions_is_what_perfect_scores_need(target, count):
    assert fewest_questions(target, 0.05) == count
    assert Evidence().capital(target, count - 1) < 20 <= Evidence().capital(target, count)


def test_fewest_questions_for_the_target_1_is_infinite():
    assert fewest_questions(1.0, 0.05) == math.inf
