"""The room for bodies. Each body waits for its next bytes in a task, as a request does."""

import asyncio

import pytest

from fsr.gateway.http.connections.bodies import Bodies, Body


def far():
    return asyncio.get_running_loop().time() + 60


async def waiting(body):
    async with body.waiting_until(far()):
        await asyncio.Event().wait()


async def test_body_that_arrives_for_the_longest_makes_room():
    bodies = Bodies(100)
    first, second, third = (Body(bodies) for _ in range(3))
    first.grow(40, complete=False)
    task = asyncio.create_task(waiting(first))
    await asyncio.sleep(0)
    second.grow(40, complete=False)
    third.grow(40, complete=True)
    with pytest.raises(TimeoutError):
        await task
    assert [body.refused for body in (first, second, third)] == [True, False, False]


async def test_body_that_is_complete_keeps_its_room_and_the_newcomer_is_refused():
    bodies = Bodies(100)
    complete, newcomer = Body(bodies), Body(bodies)
    complete.grow(80, complete=True)
    newcomer.grow(30, complete=False)
    assert (complete.refused, newcomer.refused) == (False, True)


async def test_room_is_free_when_requests_have_slots_or_end():
    bodies = Bodies(100)
    for _ in range(10):
        body = Body(bodies)
        body.grow(60, complete=False)
        body.grow(30, complete=True)
        assert not body.refused
        body.free()
        body.free()  # once for its slot, once for its end


async def test_wait_for_a_body_ends_in_time():
    body = Body(Bodies(100))
    with pytest.raises(TimeoutError):
        async with body.waiting_until(asyncio.get_running_loop().time()):
            await asyncio.Event().wait()
    assert not body.refused
