import asyncio
from contextlib import suppress

import pytest

from fsr.common.errors import InvalidRequest, Overloaded
from fsr.decoder.admission import Admission
from fsr.decoder.metrics import Metrics


def admission(capacity=100, max_running=10, max_waiting=2, max_wait=5.0):
    return Admission(capacity, max_running, max_waiting, max_wait, Metrics("tiny"))


class Request:
    """A request that runs until `end` is called."""

    def __init__(self, queue, size, log, name=""):
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._run(queue, size, log, name))

    async def _run(self, queue, size, log, name):
        with queue.enter(min(size, 1)) as ticket:
            await ticket.reserve(size)
            log.append(name)
            await self._end.wait()

    async def end(self):
        self._end.set()
        await self.task


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_that_do_not_fit_wait_in_order():
    queue, log = admission(), []
    sizes = {"a": 60, "b": 50, "c": 10}
    requests = {}
    for name, size in sizes.items():
        requests[name] = Request(queue, size, log, name)
        await settle()
    # c fits beside a, but b came first: small requests do not starve a large one.
    assert log == ["a"] and (queue.running, queue.waiting, queue.reserved) == (1, 2, 60)
    await requests["a"].end()
    await settle()
    assert log == ["a", "b", "c"] and (queue.running, queue.waiting, queue.reserved) == (2, 0, 60)
    for name in "bc":
        await requests[name].end()
    assert (queue.running, queue.waiting, queue.reserved) == (0, 0, 0)


async def test_a_request_in_preparation_is_busy_and_not_waiting():
    queue = admission()
    with queue.enter(1) as ticket:
        assert (queue.busy, queue.running, queue.waiting) == (1, 0, 0)
        await ticket.reserve(1)
        assert (queue.busy, queue.running, queue.waiting) == (1, 1, 0)
    assert (queue.busy, queue.running, queue.waiting) == (0, 0, 0)


async def test_max_running_bounds_running_requests():
    queue, log = admission(max_running=2), []
    requests = [Request(queue, 1, log, number) for number in range(4)]
    await settle()
    assert log == [0, 1] and queue.waiting == 2
    await requests[1].end()
    await settle()
    assert log == [0, 1, 2]
    for request in (requests[0], *requests[2:]):
        await request.end()
    assert queue.reserved == 0


async def test_a_full_queue_refuses_at_once_with_a_hint():
    queue, log = admission(max_waiting=1), []
    requests = [Request(queue, 100, log) for _ in range(2)]
    await settle()
    with pytest.raises(Overloaded, match="1 requests wait already") as caught, queue.enter(1):
        pass
    assert caught.value.retry_after > 0
    assert queue.waiting == 1
    for request in requests:
        await request.end()
    with queue.enter(1) as ticket:
        assert await ticket.reserve(100) == 0.0


async def test_without_a_queue_what_fits_runs():
    queue = admission(max_waiting=0)
    with queue.enter(1) as first, queue.enter(1) as second:
        await first.reserve(60)
        with pytest.raises(Overloaded):
            await second.reserve(60)
    assert (queue.running, queue.waiting, queue.reserved) == (0, 0, 0)


async def test_the_time_in_the_queue_is_bounded():
    queue, log = admission(max_wait=0.02), []
    running = Request(queue, 100, log)
    await settle()
    with queue.enter(1) as ticket, pytest.raises(Overloaded, match=r"0\.02 s") as caught:
        await ticket.reserve(10)
    assert caught.value.retry_after > 0 and queue.waiting == 0
    await running.end()


@pytest.mark.parametrize("stage", ["waiting", "running"])
async def test_a_cancelled_request_frees_everything(stage):
    queue, log = admission(), []
    first = Request(queue, 80, log, "first")
    await settle()
    second = Request(queue, 80, log, "second")
    third = Request(queue, 20, log, "third")
    await settle()
    gone = second if stage == "waiting" else first
    gone.task.cancel()
    with suppress(asyncio.CancelledError):
        await gone.task
    await settle()
    assert log == (["first", "third"] if stage == "waiting" else ["first", "second", "third"])
    assert queue.reserved == 100 and queue.waiting == 0
    for request in {first, second, third} - {gone}:
        await request.end()
    assert (queue.running, queue.waiting, queue.reserved) == (0, 0, 0)


async def test_a_request_larger_than_all_memory_is_invalid():
    queue = admission()
    with pytest.raises(InvalidRequest, match="need 101 bytes of KV memory, this replica has 100"), queue.enter(101):
        pass
    with queue.enter(50) as ticket, pytest.raises(InvalidRequest, match="101"):
        await ticket.reserve(101)
    assert (queue.running, queue.waiting, queue.reserved) == (0, 0, 0)


async def test_refusals_are_counted_by_reason():
    metrics = Metrics("tiny")
    queue = Admission(100, 10, 0, 5.0, metrics)
    for least in (101, 1):
        with suppress(InvalidRequest), queue.enter(least) as ticket:
            await ticket.reserve(100)
            with suppress(Overloaded), queue.enter(1):
                pass
    values = {
        (sample.labels["model"], sample.labels["reason"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "fsr_decoder_refused_total"
    }
    assert values == {("tiny", "too_large"): 1.0, ("tiny", "waiting"): 1.0, ("tiny", "wait_time"): 0.0}
