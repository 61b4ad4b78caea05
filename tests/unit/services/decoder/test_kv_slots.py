"""Which request has which slots. `Pool` stands for the memory: each slot holds the text up to its token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr.decoder.engines.transformers.kv_slots import KVSlots

HEAD = list(range(100, 140))


class Pool(KVSlots):
    def __init__(self, count, block=10):
        self.memory, self.moved = [None] * count, 0
        super().__init__(count, self._copy_memory, block)

    def _copy_memory(self, source, target, count):
        self.memory[target : target + count] = self.memory[source : source + count]
        self.moved += count

    def prompt(self, total, head, salt=""):
        """Leases, fills and shares what a prompt `head` and its answer need."""
        lease = self.lease(total, head, salt)
        assert self.holds(lease, head, salt)
        for at in range(lease.filled, len(head)):
            self.memory[lease.first + at] = (salt, *head[: at + 1])
        lease.filled = len(head)
        self.share(lease)
        return lease

    def holds(self, lease, head, salt=""):
        """Whether the filled slots of a lease hold the tokens of its prompt."""
        held = self.memory[lease.first : lease.first + lease.filled]
        return held == [(salt, *head[: at + 1]) for at in range(lease.filled)]


def slots(*leases):
    return sorted(slot for one in leases for slot in range(one.first, one.first + one.length))


def test_slots_are_distinct():
    pool = Pool(10)
    one, two = pool.lease(4, [], ""), pool.lease(6, [], "")
    assert slots(one, two) == list(range(10))
    with pytest.raises(MemoryError, match="1 slots are needed, 0 are free"):
        pool.lease(1, [], "")
    pool.release(one)
    assert slots(pool.lease(4, [], ""), two) == list(range(10))


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
def test_whole_blocks_of_an_equal_prefix_are_copied(head, salt, cached):
    pool = Pool(200)
    first = pool.prompt(60, HEAD, "a")
    second = pool.prompt(60, head, salt)
    assert second.cached == pool.moved == cached
    assert not set(slots(first)) & set(slots(second))


@pytest.mark.parametrize("block", [1, 16])
def test_a_long_prefix_is_found(block):
    pool, head = KVSlots(60_000, lambda *_: None, block), list(range(20_000))
    pool.share(pool.lease(20_000, head, ""))
    assert pool.lease(20_000, head, "").cached == 20_000 - block
    assert pool.lease(20_000, [7, *head[1:]], "a").cached == 0


def test_the_last_token_is_always_computed():
    pool = Pool(200)
    pool.prompt(41, HEAD)
    assert pool.lease(40, HEAD, "").cached == 30
    assert pool.lease(41, HEAD, "").cached == 40


def test_a_prefix_stays_until_its_slots_are_needed():
    pool = Pool(100)
    pool.release(pool.prompt(50, HEAD, "a"))
    pool.release(pool.prompt(50, HEAD, "b"))
    assert pool.cached == 80
    pool.release(pool.prompt(45, HEAD, "a"))  # the prefix of "b" goes: that of "a" is needed
    assert pool.cached == 40
    running = pool.prompt(60, [])
    assert pool.cached == 40
    assert pool.lease(40, HEAD, "a").cached == 0  # it takes the prefix's own slots
    assert pool.cached == 0 and running.length == 60


def test_a_prefix_that_a_longer_one_begins_with_is_held_once():
    pool = Pool(200)
    pool.release(pool.prompt(30, HEAD[:20]))
    pool.release(pool.prompt(50, HEAD))
    assert pool.cached == 40
    assert pool.prompt(30, HEAD[:20]).cached == 20


def test_prefixes_that_part_later_are_both_found():
    pool, other = Pool(400), [*HEAD[:20], *range(20)]
    leases = [pool.prompt(50, HEAD), pool.prompt(50, other)]
    for lease in leases:
        pool.release(lease)
    assert pool.prompt(50, other).cached == pool.prompt(50, HEAD).cached == 40


def test_leases_move_together_only_if_no_free_slots_in_a_row_suffice():
    pool = Pool(100)
    leases = [pool.prompt(20, [seed] * 9) for seed in range(5)]
    pool.release(leases[1])
    pool.release(leases[3])
    assert pool.prompt(20, [7] * 9).first == 20 and pool.moved == 0
    pool.release(leases[0])
    assert pool.prompt(40, [8] * 9).first == 40 and pool.moved == 18  # the filled slots of two leases
    assert pool.holds(leases[2], [2] * 9) and pool.holds(leases[4], [4] * 9)


STEPS = st.tuples(st.integers(1, 30), st.integers(0, 25), st.integers(0, 3), st.booleans())


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_every_request_finds_its_own_tokens_and_no_slot_is_lost(steps):
    pool, held = Pool(100, block=4), []
    for total, shared, turn, leave in steps:
        if leave and held:
            pool.release(held.pop(turn % len(held))[0])
        if total + sum(lease.length for lease, _ in held) > 100:
            continue
        head = [*HEAD[: min(shared, total - 1)], turn][:total]
        held.append((pool.prompt(total, head), head))
        taken = slots(*(lease for lease, _ in held))
        assert len(taken) == len(set(taken)) and (not taken or 0 <= taken[0] <= taken[-1] < 100)
        assert all(pool.holds(lease, text) for lease, text in held)
    for lease, _ in held:
        pool.release(lease)
    assert pool.lease(100, [], "").length == 100
