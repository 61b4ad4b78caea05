import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.canary import Share, bucket, tokens_agreed


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=200))
def test_a_share_is_never_exceeded(of, spare):
    """Whatever was spare before: also in the burst that follows a time without room."""
    share, taken = Share(of), 0
    for seen, room in enumerate(spare, 1):
        if share.due() and room:
            share.take()
            taken += 1
        assert taken <= of * seen + 1e-6


def test_a_share_is_used_where_there_is_room():
    share = Share(0.25)
    taken = 0
    for _ in range(100):
        if share.due():
            share.take()
            taken += 1
    assert taken == 25


@pytest.mark.parametrize(
    ("kept", "source", "label"),
    [(1, 576, "0.05"), (64, 576, "0.2"), (58, 576, "0.2"), (57, 576, "0.1"), (144, 144, "1")],
)
def test_budget_labels_are_few(kept, source, label):
    assert bucket(kept, source) == label


@pytest.mark.parametrize(
    ("one", "other", "agreed"),
    [([1, 2, 3], [1, 2, 3], 3), ([1, 2], [1, 2, 3], 2), ([1, 5, 3], [1, 2, 3], 2), ([], [], 0)],
)
def test_agreement_of_tokens(one, other, agreed):
    assert tokens_agreed(one, other) == tokens_agreed(other, one) == agreed
