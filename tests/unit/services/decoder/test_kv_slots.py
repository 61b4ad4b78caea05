import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr.decoder.engines.transformers.kv_slots import Places

HEAD = list(range(100, 140))


def test_places_are_distinct_and_never_the_padding():
    pool = Places(10)
    one, two = pool.take(4, [], ""), pool.take(6, [], "")
    assert sorted(one.places + two.places) == list(range(1, 11))
    with pytest.raises(MemoryError, match="1 places are needed, 0 are free"):
        pool.take(1, [], "")
    pool.give_back(one)
    assert sorted(pool.take(4, [], "").places + two.places) == list(range(1, 11))


@pytest.mark.parametrize(
    ("head", "salt", "cached"),
    [
        (HEAD, "a", 40),
        (HEAD[:25], "a", 20),
        (HEAD[:9], "a", 0),
        ([*HEAD[:10], 7, *HEAD[11:]], "a", 10),
        ([7, *HEAD], "a", 0),
        (HEAD, "b", 0),
    ],
)
def test_whole_blocks_of_the_same_beginning_are_shared(head, salt, cached):
    pool = Places(200, block=10)
    first = pool.take(60, HEAD, "a")
    pool.share(first)
    second = pool.take(60, head, salt)
    assert second.cached == cached and second.places[:cached] == first.places[:cached]
    assert not set(second.places[cached:]) & set(first.places)


@pytest.mark.parametrize("block", [1, 16])
def test_a_long_beginning_is_shared_like_a_short_one(block):
    pool, head = Places(60_000, block), list(range(20_000))
    pool.share(pool.take(20_000, head, ""))
    assert pool.take(20_000, head, "").cached == 20_000 - block
    assert pool.take(20_000, [7, *head[1:]], "a").cached == 0


def test_the_last_token_is_always_computed():
    pool = Places(200, block=10)
    first = pool.take(41, HEAD, "")
    pool.share(first)
    assert pool.take(40, HEAD, "").cached == 30
    assert pool.take(41, HEAD, "").cached == 40


def test_unused_prefixes_are_kept_until_their_room_is_needed():
    pool = Places(60, block=10)
    first = pool.take(50, HEAD, "")
    pool.share(first)
    pool.give_back(first)
    assert pool.cached == 40
    other = pool.take(30, [], "")  # 20 are free, so one block goes: the end of the prefix
    assert pool.cached == 30
    again = pool.take(30, HEAD, "")  # needs 10 more: the block it cannot use, since one token must be computed
    assert again.cached == 20 and pool.cached == 0
    pool.give_back(other)
    pool.give_back(again)
    assert pool.take(50, HEAD, "").cached == 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 25), st.booleans()), max_size=60))
def test_no_place_is_lost_or_given_twice(steps):
    pool, held = Places(100, block=4), []
    for total, shared, leave in steps:
        if leave and held:
            pool.give_back(held.pop(0))
        if total + sum(len(lease.places) for lease in held) > 100:
            continue
        lease = pool.take(total, HEAD[: min(shared, total)], "")
        assert len(lease.places) == len(set(lease.places)) == total and 0 not in lease.places
        pool.share(lease)
        held.append(lease)
        private = [place for one in held for place in one.places[one.shared * 4 :]]
        assert len(private) == len(set(private))
    for lease in held:
        pool.give_back(lease)
    assert len(pool.take(100, [], "").places) == 100
