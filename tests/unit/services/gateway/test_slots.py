"""Who gets a slot. Requests are those of a key and a connection; each holds its slot until the test ends it."""

import asyncio

import pytest

from fsr.gateway.callers.slots import NoSlot, Slots


class Request:
    """A request that runs until `end`. `log` gets its name when it has its slot."""

    def __init__(self, slots, log, key, connection="c", most=(100, 100), weight=1.0, seconds=60):
        self.key, self._ended = key, asyncio.Event()
        self.task = asyncio.create_task(self._run(slots, log, key, connection, most, weight, seconds))

    async def _run(self, slots, log, key, connection, most, weight, seconds):
        async with slots.slot(key, connection, most=most, weight=weight, seconds=seconds):
            log.append(f"{key}/{connection}" if connection != "c" else key)
            self.running = True
            await self._ended.wait()

    running = False

    async def end(self):
        self._ended.set()
        await self.task
        await settle()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def requests(slots, log, keys, **options):
    made = [Request(slots, log, key, **options) for key in keys]
    await settle()
    return made


async def end_all(made):
    while running := [request for request in made if request.running and not request.task.done()]:
        await running[0].end()


async def test_free_slot_when_nobody_waits_is_taken_at_once():
    slots, log = Slots(2, 10), []
    made = await requests(slots, log, "aa")
    assert log == ["a", "a"] and slots.full and slots.waiting == 0
    await end_all(made)
    assert not slots.full


async def test_slot_when_it_becomes_free_goes_to_the_key_that_holds_fewest():
    slots, log = Slots(3, 10), []
    made = await requests(slots, log, "aaaaab")
    assert log == ["a", "a", "a"]
    await made[0].end()
    assert log[3:] == ["b"]
    await end_all(made)


async def test_keys_when_there_is_one_slot_take_turns():
    slots, log = Slots(1, 20), []
    made = await requests(slots, log, "aaaabbcc")
    await end_all(made)
    assert log == ["a", "b", "c", "a", "b", "c", "a", "a"]


async def test_connections_of_a_key_take_turns():
    slots, log = Slots(1, 20), []
    made = [*await requests(slots, log, "aaaa", connection="x"), *await requests(slots, log, "aa", connection="y")]
    await end_all(made)
    assert log == ["a/x", "a/y", "a/x", "a/y", "a/x", "a/x"]


@pytest.mark.parametrize(("most", "heavy"), [(1, 3), (4, 3), (8, 6)])
async def test_key_with_three_times_the_weight_gets_three_times_the_slots(most, heavy):
    """One slot after the other, or held at the same time."""
    slots, log = Slots(most, 100), []
    made = await requests(slots, log, "x" * most)
    made += await requests(slots, log, "h" * 20, weight=3.0)
    made += await requests(slots, log, "l" * 20)
    if most == 1:
        for _ in range(8):
            await next(request for request in made if request.running and not request.task.done()).end()
        assert log[1:9].count("h") == 2 * heavy
    else:
        for request in made[:most]:
            await request.end()
        assert log[most:].count("h") == heavy
    for request in made:
        request.task.cancel()


@pytest.mark.parametrize(("most", "reason"), [((1, 9), "key"), ((9, 1), "connection")])
async def test_key_or_connection_at_its_bound_waits_while_others_run(most, reason):
    slots, log = Slots(4, 10), []
    first, second = await requests(slots, log, "aa", most=most)
    (other,) = await requests(slots, log, "b")
    assert log == ["a", "b"] and slots.waiting == 1
    with pytest.raises(NoSlot) as caught:
        async with slots.slot("a", "c", most=most, weight=1, seconds=0.01):
            pass
    assert (caught.value.reason, caught.value.in_flight) == (reason, 1)
    await first.end()
    assert log == ["a", "b", "a"]
    await end_all([second, other])


async def test_line_when_it_is_full_takes_the_place_from_the_key_with_the_most():
    slots, log = Slots(1, 3), []
    made = await requests(slots, log, "xaaab")
    assert isinstance(made[3].task.exception(), NoSlot) and slots.waiting == 3
    (late,) = await requests(slots, log, "a")
    assert late.task.exception().reason == "in_flight"  # the newcomer's own key has the most
    await end_all(made)
    assert log == ["x", "a", "b", "a"]


async def test_line_when_one_connection_fills_it_takes_the_place_from_that_connection():
    slots, log = Slots(1, 2), []
    made = await requests(slots, log, "aaa", connection="x")
    made += await requests(slots, log, "a", connection="y")
    assert made[2].task.done() and not made[3].task.done()
    await end_all(made)
    assert log == ["a/x", "a/y", "a/x"]


async def test_line_without_places_refuses_at_once():
    slots, log = Slots(1, 0), []
    made = await requests(slots, log, "aa")
    assert isinstance(made[1].task.exception(), NoSlot)
    await end_all(made)


async def test_caller_who_leaves_gives_place_and_slot_to_the_next():
    slots, log = Slots(1, 10), []
    made = await requests(slots, log, "abc")
    made[1].task.cancel()
    await settle()
    assert slots.waiting == 1
    made[0].task.cancel()
    await settle()
    assert log == ["a", "c"]
    await made[2].end()


async def test_nothing_is_kept_of_keys_and_connections_that_have_gone():
    slots, log = Slots(2, 2), []
    made = await requests(slots, log, [f"key-{i}" for i in range(9)])
    await end_all(made)
    await asyncio.gather(*(request.task for request in made), return_exceptions=True)
    assert slots._all.parts == {} and slots._all.in_flight == slots._all.waiting == 0
