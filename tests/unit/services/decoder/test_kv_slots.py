import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr.decoder.engines.transformers.kv_slots import KVSlots

HEAD = list(range(100, 140))


def test_slots_are_distinct_and_never_the_padding():
    pool = KVSlots(10)
    one, two = pool.lease(4, [], ""), pool.lease(6, [], "")
    assert sorted(one.slots + two.slots) == list(range(1, 11))
    with pytest.raises(MemoryError, match="1 slots are needed, 0 are free"):
        pool.lease(1, [], "")
    pool.release(one)
    assert sorted(pool.lease(4, [], "").slots + two.slots) == list(range(1, 11))


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
def test_whole_blocks_of_an_equal_prefix_are_shared(head, salt, cached):
    pool = KVSlots(200, block=10)
    first = pool.lease(60, HEAD, "a")
    pool.share(first)
    second = pool.lease(60, head, salt)
    assert second.cached == cached and second.slots[:cached] == first.slots[:cached]
    assert not set(second.slots[cached:]) & set(first.slots)


@pytest.mark.parametrize("block", [1, 16])
def test_a_long_prefix_is_shared(block):
    pool, head = KVSlots(60_000, block), list(range(20_000))
    pool.share(pool.lease(20_000, head, ""))
    assert pool.lease(20_000, head, "").cached == 20_000 - block
    assert pool.lease(20_000, [7, *head[1:]], "a").cached == 0


def test_the_last_token_is_always_computed():
    pool = KVSlots(200, block=10)
    first = pool.lease(41, HEAD, "")
    pool.share(first)
    assert pool.lease(40, HEAD, "").cached == 30
    assert pool.lease(41, HEAD, "").cached == 40


def test_unused_prefixes_stay_until_their_slots_are_needed():
    pool = KVSlots(60, block=10)
    first = pool.lease(50, HEAD, "")
    pool.share(first)
    pool.release(first)
    assert pool.cached == 40
    other = pool.lease(30, [], "")  # 20 slots are free, so one block goes: the end of the prefix
    assert pool.cached == 30
    again = pool.lease(30, HEAD, "")  # needs 10 more: the last block, which it cannot share
    assert again.cached == 20 and pool.cached == 0
    pool.release(other)
    pool.release(again)
    assert pool.lease(50, HEAD, "").cached == 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 25), st.booleans()), max_size=60))
def test_no_slot_is_lost_or_leased_twice(steps):
    pool, held = KVSlots(100, block=4), []
    for total, shared, leave in steps:
        if leave and held:
            pool.release(held.pop(0))
        if total + sum(len(lease.slots) for lease in held) > 100:
            continue
        lease = pool.lease(total, HEAD[: min(shared, total)], "")
        assert len(lease.slots) == len(set(lease.slots)) == total and 0 not in lease.slots
        pool.share(lease)
        held.append(lease)
        private = [slot for one in held for slot in one.slots[one.shared * 4 :]]
        assert len(private) == len(set(private))
    for lease in held:
        pool.release(lease)
    assert len(pool.lease(100, [], "").slots) == 100
