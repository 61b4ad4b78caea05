"""Threads that decode: who waits, who is told what when the time is over, and what stays occupied."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from fsr.common.errors import Expired, InvalidRequest, Overloaded
from fsr.encoder.images.decode_threads import DecodeThreads, DecodeTime

SMALL, LARGE = 1, 10**8


def soon(seconds=0.2):
    return time.monotonic() + seconds


class Work:
    """Occupies a thread until the test lets it go on."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, abandoned):
        self.begun.set()
        assert self.go_on.wait(60)
        return "done"


@pytest.fixture
def work():
    work = Work()
    yield work
    work.go_on.set()


async def test_work_when_it_ends_in_time_then_its_result():
    threads = DecodeThreads(1)
    assert await threads.run(lambda abandoned: "done", SMALL, float("inf")) == "done"
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda abandoned: 1 / 0, SMALL, soon(60))


async def test_work_when_it_outlives_its_deadline_then_it_keeps_its_thread(work):
    threads = DecodeThreads(1)
    with pytest.raises(Expired):
        await threads.run(work, SMALL, soon())
    with pytest.raises(Overloaded, match=r"^encoder: did not come to the images in time"):
        await threads.run(lambda abandoned: "next", SMALL, soon())
    work.go_on.set()
    assert await threads.run(lambda abandoned: "next", SMALL, soon(60)) == "next"


async def test_work_when_the_deadline_has_passed_then_it_does_not_begin(work):
    with pytest.raises(Overloaded):
        await DecodeThreads(1).run(work, SMALL, soon(-1))
    assert not work.begun.is_set()


async def test_work_when_its_caller_has_gone_before_its_turn_then_it_is_not_done(work):
    threads, unwanted = DecodeThreads(1), Work()
    first, second = (asyncio.create_task(threads.run(one, SMALL, soon(60))) for one in (work, unwanted))
    while not work.begun.is_set():
        await asyncio.sleep(0.01)
    second.cancel()
    with suppress(asyncio.CancelledError):
        await second
    work.go_on.set()
    assert await first == "done" and await threads.run(lambda abandoned: "next", SMALL, soon(60)) == "next"
    assert not unwanted.begun.is_set()


async def test_work_when_large_pictures_wait_then_small_ones_do_not(work):
    threads = DecodeThreads(1)
    large = asyncio.create_task(threads.run(work, LARGE, soon(60)))
    assert await threads.run(lambda abandoned: "small", SMALL, soon(60)) == "small"
    assert not large.done()
    work.go_on.set()
    assert await large == "done"


def test_decode_time_when_the_thread_has_computed_too_long_then_the_picture_is_named():
    decode_time = DecodeTime(0.05, threading.Event())
    decode_time.check("images[0].data")
    time.sleep(0.1)  # waiting is not computing
    decode_time.check("images[0].data")
    began = time.thread_time()
    while time.thread_time() - began < 0.06:
        pass
    with pytest.raises(InvalidRequest, match=r"^images\[3\]\.data: takes more than 0\.05 s to decode; scale it down"):
        decode_time.check("images[3].data")


@pytest.mark.parametrize("gone", ["cancelled", "late"])
async def test_decode_when_nobody_waits_any_more_then_it_stops_at_its_next_read(gone):
    stopped, began = threading.Event(), threading.Event()

    def decode(abandoned):
        decode_time = DecodeTime(60, abandoned)
        began.set()
        try:
            while True:
                decode_time.check("images[0].data")
                time.sleep(0.01)
        except Expired:
            stopped.set()

    task = asyncio.create_task(DecodeThreads(1).run(decode, SMALL, soon(0.3 if gone == "late" else 60)))
    while not began.is_set():
        await asyncio.sleep(0.01)
    if gone == "cancelled":
        task.cancel()
    with pytest.raises((Expired, asyncio.CancelledError)):
        await task
    assert stopped.wait(60)
