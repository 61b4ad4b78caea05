"""Batches form while the towers are busy, and never wait while they are idle."""

import asyncio
import threading
from dataclasses import dataclass

import pytest

from fsr.encoder.batching import Batches


@dataclass(eq=False)
class Job:
    """What batches read of an `ImageJob`."""

    name: str
    size: int = 1


class Towers:
    """Runs batches; each waits until it is let go."""

    def __init__(self):
        self.batches, self.go, self.began = [], threading.Semaphore(0), threading.Semaphore(0)

    def run(self, jobs):
        self.batches.append([job.name for job in jobs])
        self.began.release()
        assert self.go.acquire(timeout=60)
        if any(job.name == "bad" for job in jobs):
            raise RuntimeError("broken")
        return [job.name.upper() for job in jobs]

    async def wait_until_busy(self):
        assert await asyncio.to_thread(self.began.acquire, timeout=60)

    def let_go(self, batches):
        self.go.release(batches)


@pytest.fixture
def towers():
    towers = Towers()
    yield towers
    towers.let_go(100)


async def started(batches, *jobs):
    """The task of a caller with these jobs, which has handed them over."""
    task = asyncio.create_task(batches.run(jobs))
    await asyncio.sleep(0)
    return task


async def test_job_when_the_towers_are_idle_then_it_starts_without_a_wait(towers):
    batches = Batches(towers.run, max_size=4)
    towers.let_go(2)
    assert await batches.run([Job("a")]) == ["A"]
    assert await batches.run([Job("b")]) == ["B"]
    assert towers.batches == [["a"], ["b"]]


async def test_jobs_when_the_towers_are_busy_then_they_form_the_next_batch(towers):
    batches = Batches(towers.run, max_size=4)
    tasks = [await started(batches, Job("a"))]
    await towers.wait_until_busy()
    tasks += [await started(batches, Job(name)) for name in "bcdefg"]
    towers.let_go(3)
    assert await asyncio.gather(*tasks) == [[name] for name in "ABCDEFG"]
    assert towers.batches == [["a"], ["b", "c", "d", "e"], ["f", "g"]]


async def test_jobs_of_one_request_and_of_one_moment_share_a_batch(towers):
    batches = Batches(towers.run, max_size=4)
    towers.let_go(1)
    tasks = [batches.run([Job("a"), Job("b")]), batches.run([Job("c")])]
    assert await asyncio.gather(*tasks) == [["A", "B"], ["C"]]
    assert towers.batches == [["a", "b", "c"]]


async def test_large_job_is_a_batch_alone_and_keeps_its_place(towers):
    batches = Batches(towers.run, max_size=4)
    towers.let_go(3)
    jobs = [Job("a"), Job("b", 9), Job("c", 2), Job("d", 2)]
    assert await batches.run(jobs) == ["A", "B", "C", "D"]
    assert towers.batches == [["a"], ["b"], ["c", "d"]]


async def test_job_when_its_caller_goes_away_is_left_out(towers):
    batches = Batches(towers.run, max_size=4)
    first = await started(batches, Job("a"))
    await towers.wait_until_busy()
    gone, last = await started(batches, Job("b")), await started(batches, Job("c"))
    gone.cancel()
    await asyncio.wait([gone])
    towers.let_go(2)
    assert await asyncio.gather(first, last) == [["A"], ["C"]]
    assert towers.batches == [["a"], ["c"]]


async def test_batch_when_it_fails_then_its_callers_hear_it_and_the_next_one_runs(towers):
    batches = Batches(towers.run, max_size=1)
    towers.let_go(2)
    bad, good = await asyncio.gather(batches.run([Job("bad")]), batches.run([Job("b")]), return_exceptions=True)
    assert isinstance(bad, RuntimeError) and good == ["B"]


async def test_job_when_a_wait_is_set_then_the_next_one_joins_it(towers):
    batches = Batches(towers.run, max_size=4, wait_seconds=0.2)
    towers.let_go(1)
    first = await started(batches, Job("a"))
    await asyncio.sleep(0.01)
    assert await asyncio.gather(first, batches.run([Job("b")])) == [["A"], ["B"]]
    assert towers.batches == [["a", "b"]]
