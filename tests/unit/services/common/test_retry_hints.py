import pytest

from fsr.common.requests.retry_hints import RetryHints


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_each_refused_caller_gets_a_later_hint(clock):
    hints = RetryHints(0.5, 30.0, clock)
    assert [hints.next(0) for _ in range(3)] == [0.5, 1.0, 1.5]
    clock.now += 1.0
    assert hints.next(0) == 1.0  # two of the three have come back
    clock.now += 60.0
    assert hints.next(0) == 0.5


def test_hint_is_later_than_those_in_the_line_will_start(clock):
    assert RetryHints(0.5, 30.0, clock).next(4) == 2.5


def test_hint_follows_the_rate_at_which_requests_end(clock):
    hints = RetryHints(0.5, 30.0, clock)
    for _ in range(3):
        hints.ended(busy=True)
        clock.now += 2.0
    hints.ended(busy=False)
    clock.now += 1000.0  # idle time says nothing
    hints.ended(busy=True)
    assert hints.next(1) == 4.0


def test_hint_grows_while_nothing_ends(clock):
    hints = RetryHints(0.5, 30.0, clock)
    hints.ended(busy=True)
    clock.now += 0.1
    hints.ended(busy=True)
    assert hints.next(0) == pytest.approx(0.1)
    clock.now += 7.0
    assert hints.next(0) == pytest.approx(7.0)


def test_hints_are_bounded(clock):
    hints = RetryHints(0.5, 30.0, clock)
    assert max(hints.next(10) for _ in range(1000)) == 30.0
    for _ in range(3):
        hints.ended(busy=True)
    clock.now += 60.0
    assert RetryHints(0.001, 30.0, clock).next(0) == 0.05
