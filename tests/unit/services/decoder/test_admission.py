import asyncio
from contextlib import suppress

import pytest
import torch

from fsr.common.errors import InvalidRequest, Overloaded
from fsr.decoder.__main__ import kv_bytes
from fsr.decoder.admission import Admission
from fsr.decoder.metrics import Metrics
from fsr.decoder.settings import DecoderSettings


def admission(capacity=100, max_running=10, max_waiting=2, max_wait=5.0):
    return Admission(capacity, max_running, max_waiting, max_wait, Metrics("tiny"))


class Request:
    """A request that runs until it is told to end."""

    def __init__(self, line, size, log, name=""):
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._run(line, size, log, name))

    async def _run(self, line, size, log, name):
        with line.enter(min(size, 1)) as place:
            await place.reserve(size)
            log.append(name)
            await self._end.wait()

    async def end(self):
        self._end.set()
        await self.task


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_fits_runs_and_what_does_not_waits_in_line():
    line, log = admission(), []
    sizes = {"a": 60, "b": 50, "c": 10}
    requests = {}
    for name, size in sizes.items():
        requests[name] = Request(line, size, log, name)
        await settle()
    # c would fit beside a, but b came first: small requests do not starve a large one.
    assert log == ["a"] and (line.running, line.waiting, line.reserved) == (1, 2, 60)
    await requests["a"].end()
    await settle()
    assert log == ["a", "b", "c"] and (line.running, line.waiting, line.reserved) == (2, 0, 60)
    for name in "bc":
        await requests[name].end()
    assert (line.running, line.waiting, line.reserved) == (0, 0, 0)


async def test_who_comes_in_does_not_wait_in_line_yet():
    line = admission()
    with line.enter(1) as place:
        assert (line.busy, line.running, line.waiting) == (1, 0, 0)
        await place.reserve(1)
        assert (line.busy, line.running, line.waiting) == (1, 1, 0)
    assert (line.busy, line.running, line.waiting) == (0, 0, 0)


async def test_slots_bound_too():
    line, log = admission(max_running=2), []
    requests = [Request(line, 1, log, number) for number in range(4)]
    await settle()
    assert log == [0, 1] and line.waiting == 2
    await requests[1].end()
    await settle()
    assert log == [0, 1, 2]
    for request in (requests[0], *requests[2:]):
        await request.end()
    assert line.reserved == 0


async def test_too_many_are_refused_at_once_with_a_hint():
    line, log = admission(max_waiting=1), []
    requests = [Request(line, 100, log) for _ in range(2)]
    await settle()
    with pytest.raises(Overloaded, match="1 requests wait already") as caught, line.enter(1):
        pass
    assert caught.value.retry_after > 0
    assert line.waiting == 1
    for request in requests:
        await request.end()
    with line.enter(1) as place:
        assert await place.reserve(100) == 0.0


async def test_none_may_wait_yet_what_fits_runs():
    line = admission(max_waiting=0)
    with line.enter(1) as first, line.enter(1) as second:
        await first.reserve(60)
        with pytest.raises(Overloaded):
            await second.reserve(60)
    assert (line.running, line.waiting, line.reserved) == (0, 0, 0)


async def test_waiting_is_bounded_in_time():
    line, log = admission(max_wait=0.02), []
    running = Request(line, 100, log)
    await settle()
    with line.enter(1) as place, pytest.raises(Overloaded, match=r"0\.02 s") as caught:
        await place.reserve(10)
    assert caught.value.retry_after > 0 and line.waiting == 0
    await running.end()


@pytest.mark.parametrize("stage", ["waiting", "running"])
async def test_who_is_cancelled_leaves_no_trace(stage):
    line, log = admission(), []
    first = Request(line, 80, log, "first")
    await settle()
    second = Request(line, 80, log, "second")
    third = Request(line, 20, log, "third")
    await settle()
    gone = second if stage == "waiting" else first
    gone.task.cancel()
    with suppress(asyncio.CancelledError):
        await gone.task
    await settle()
    assert log == (["first", "third"] if stage == "waiting" else ["first", "second", "third"])
    assert line.reserved == 100 and line.waiting == 0
    for request in {first, second, third} - {gone}:
        await request.end()
    assert (line.running, line.waiting, line.reserved) == (0, 0, 0)


async def test_what_can_never_fit_is_the_callers_mistake():
    line = admission()
    with pytest.raises(InvalidRequest, match="need 101 bytes of KV memory, this replica has 100"), line.enter(101):
        pass
    with line.enter(50) as place, pytest.raises(InvalidRequest, match="101"):
        await place.reserve(101)
    assert (line.running, line.waiting, line.reserved) == (0, 0, 0)


async def test_refusals_are_counted_by_reason():
    metrics = Metrics("tiny")
    line = Admission(100, 10, 0, 5.0, metrics)
    for least in (101, 1):
        with suppress(InvalidRequest), line.enter(least) as place:
            await place.reserve(100)
            with suppress(Overloaded), line.enter(1):
                pass
    values = {
        (sample.labels["model"], sample.labels["reason"]): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "fsr_decoder_refused_total"
    }
    assert values == {("tiny", "too_large"): 1.0, ("tiny", "waiting"): 1.0, ("tiny", "wait_time"): 0.0}


def test_the_budget_of_kv_memory_leaves_room_for_weights_that_are_still_to_load(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24_000_000_000, 24_000_000_000))
    on_gpu = DecoderSettings(model="any", device="cuda")
    assert kv_bytes(on_gpu) == 19_200_000_000
    assert kv_bytes(on_gpu, to_load=14_000_000_000) == 8_000_000_000
    assert kv_bytes(on_gpu, to_load=30_000_000_000) == 0
    assert kv_bytes(DecoderSettings(model="any", device="cuda", kv_memory="1GiB"), to_load=10**10) == 2**30
