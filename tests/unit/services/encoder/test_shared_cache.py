"""Replicas that share features, without Ray: one directory, and each replica with a cache of its own."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import fields, replace

import pytest
import torch
from structlog.testing import capture_logs

from fsr.encoder.cache import FeatureCache
from fsr.encoder.shared_cache import directory as directories
from fsr.encoder.shared_cache import shared_features
from fsr.encoder.shared_cache.directory import Directory
from fsr.encoder.shared_cache.packing import pack, unpack
from fsr.encoder.shared_cache.shared_features import SharedFeatures
from fsr_core.backbones import ImageFeatures, Tile
from helpers.benches import SIZES, picture
from helpers.encoder_requests import image_of, pipeline_of, request_of

CPU = torch.device("cpu")


def features(value=1.0, dtype=torch.float32, **more):
    """Of one picture with four tokens."""
    tile = Tile(0, 2, 2, (0, 0, 1, 1))
    rows = torch.full((4, 8), value, dtype=dtype)
    return ImageFeatures(features=rows, saliency=torch.ones(4), tiles=(tile,), size=(1, 1), **more)


def assert_same(one, other):
    for field in fields(ImageFeatures):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        else:
            assert a == b, field.name


async def soon(condition):
    """Waits until a condition holds, while the event loop goes on."""
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(shared_features, "_PACE_SECONDS", 0.01)
    monkeypatch.setattr(shared_features, "_RETRY_SECONDS", 0.01)


class Replicas:
    """Replicas of one directory, which `connect` may replace."""

    def __init__(self):
        self.directory = Directory()
        self.all = {}

    def add(self, name, max_bytes=10**6, **options):
        """The cache of a new replica, and its part in the shared one."""
        self.all[name] = SharedFeatures(name, cache := FeatureCache(max_bytes), CPU, lambda: self.directory, **options)
        self.all[name].start()
        return cache, self.all[name]

    async def knows(self, name, key):
        await soon(lambda: key in self.all[name]._elsewhere)


@asynccontextmanager
async def replicas():
    some = Replicas()
    try:
        yield some
    finally:
        for one in some.all.values():
            await one.stop()


async def test_features_when_another_replica_has_them_are_fetched_bit_for_bit():
    hits = []
    async with replicas() as some:
        cache, first = some.add("first")
        _, second = some.add("second", on_hit=lambda: hits.append(1))
        assert await second.get("a") is None
        cache.put("a", features(0.1))
        first.changed()
        await some.knows("second", "a")
        got = await second.get("a")
        assert_same(got, cache.get("a"))
        assert got.features.data_ptr() != cache.get("a").features.data_ptr()
        got.features.zero_()  # memory of its own, which it may write to
        assert await second.get("b") is None and await first.get("a") is None
        assert hits == [1]


async def test_a_replica_when_it_comes_later_hears_of_all_keys():
    async with replicas() as some:
        for name in "abc":
            cache, shared = some.add(f"replica-{name}")
            cache.put(name, features(ord(name)))
            shared.changed()
        _, late = some.add("late")
        for name in "abc":
            await some.knows("late", name)
            assert (await late.get(name)).features[0, 0] == ord(name)


async def test_features_when_they_are_evicted_are_a_miss():
    async with replicas() as some:
        cache, first = some.add("first", max_bytes=features().nbytes)
        _, second = some.add("second")
        cache.put("a", features())
        first.changed()
        await some.knows("second", "a")
        cache.put("b", features())  # the others do not know yet that `a` is gone
        assert await second.get("a") is None
        first.changed()
        await some.knows("second", "b")
        await soon(lambda: second._elsewhere == {"b"})


async def test_a_key_when_one_of_its_replicas_drops_it_is_found_at_the_other():
    async with replicas() as some:
        caches = [some.add(name, max_bytes=features().nbytes) for name in ("first", "second")]
        _, third = some.add("third")
        for cache, shared in caches:
            cache.put("a", features())
            shared.changed()
        await some.knows("third", "a")
        await some.knows("first", "a")
        cache, shared = caches[1]
        cache.put("b", features())
        shared.changed()
        await some.knows("third", "b")
        assert await third.get("a") is not None


async def test_requests_when_they_want_the_same_features_at_once_get_them_from_one_offer(monkeypatch):
    packed = []
    monkeypatch.setattr(shared_features, "pack", lambda one: packed.append(one) or pack(one))
    async with replicas() as some:
        cache, first = some.add("first")
        others = [some.add(name)[1] for name in ("second", "third")]
        cache.put("a", features())
        first.changed()
        for name in ("second", "third"):
            await some.knows(name, "a")
        got = await asyncio.gather(*(other.get("a") for other in others for _ in range(5)))
        assert None not in [one and 1 for one in got] and len(packed) == 1


class Mortal:
    """A directory whose calls fail once it has died, those that wait too, as those of an actor do."""

    def __init__(self):
        self._alive, self._died = Directory(), asyncio.Event()

    def die(self):
        self._died.set()

    def __getattr__(self, name):
        async def call(*arguments):
            tasks = [asyncio.ensure_future(one) for one in (getattr(self._alive, name)(*arguments), self._died.wait())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            tasks[0].cancel()
            tasks[1].cancel()
            if self._died.is_set():
                raise ConnectionError("the actor has died")
            return tasks[0].result()

        return call


async def test_the_directory_when_it_dies_is_a_miss_and_the_next_one_learns_all():
    async with replicas() as some:
        some.directory = Mortal()
        cache, first = some.add("first")
        _, second = some.add("second")
        cache.put("a", features())
        first.changed()
        await some.knows("second", "a")
        with capture_logs() as lines:
            some.directory.die()
            assert await second.get("a") is None
            await soon(lambda: first._directory is second._directory is None)
            assert await second.get("a") is None
            some.directory = Directory()
            await some.knows("second", "a")
        assert await second.get("a") is not None
        assert {line["event"] for line in lines} == {"no features from other replicas for now"}


async def test_a_replica_when_it_is_frozen_costs_one_short_wait_and_is_forgotten(monkeypatch):
    monkeypatch.setattr(shared_features, "_FETCH_SECONDS", 0.05)
    monkeypatch.setattr(directories, "_FETCH_SECONDS", 0.1)
    async with replicas() as some:
        _, second = some.add("second")
        await some.directory.announce("frozen", ["a", "b"], [])
        await some.knows("second", "b")
        assert await second.get("a") is None
        with monkeypatch.context() as patched:
            patched.setattr(some.directory, "fetch", None)  # it is not asked again for a while
            assert await second.get("b") is None
        await soon(lambda: not second._elsewhere)
        assert await some.directory.news("frozen") is None and await some.directory.wanted("frozen") is None


async def test_a_replica_when_it_was_forgotten_announces_itself_anew():
    async with replicas() as some:
        cache, first = some.add("first")
        _, second = some.add("second")
        cache.put("a", features())
        first.changed()
        await some.knows("second", "a")
        some.directory._forget("first")
        await soon(lambda: "a" in getattr(some.directory._replicas.get("first"), "keys", ()))
        await some.knows("second", "a")
        assert await second.get("a") is not None


async def test_the_directory_when_replicas_are_silent_forgets_them(monkeypatch):
    directory = Directory()
    await directory.announce("gone", ["a"], [])
    await directory.announce("here", [], [])
    assert (await directory.news("here")).added == {"a"} and directory.is_used()
    monkeypatch.setattr(directories, "_SILENT_SECONDS", -1.0)
    assert not directory.is_used()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_when_packed_keep_every_bit(dtype):
    odd = torch.arange(12, dtype=torch.float32).view(3, 4).T.to(dtype)  # not contiguous
    whole = features(0.1, dtype, keys=odd, positions=torch.arange(12).view(4, 3), deepstack=torch.ones(2, 4, 8))
    whole = replace(whole, lines=torch.tensor([0, 0, -1, 1]), empty_lines=2, grid=(1, 2, 2), frame_seconds=(0.5,))
    assert_same(unpack(pack(whole), CPU), whole)


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "llava_onevision", "internvl", "smolvlm", "qwen2_5_vl", "qwen3_vl"]
)
def test_features_of_a_family_when_packed_are_the_same(bench, name):
    encoder = bench(name).encoder
    for one in encoder.encode_images([encoder.preprocess(picture(SIZES[0]))]):
        assert_same(unpack(pack(one), encoder.device), one)


async def ask(pipeline, request):
    async def run_jobs(jobs):
        return pipeline.run_batch(jobs)

    return await pipeline.answer(request, run_jobs)


async def test_follow_up_when_another_replica_saw_the_picture_is_a_hit_with_the_same_tokens(bench):
    """Apart by tenant, and in a request with a picture that nobody has."""
    encoder = bench("llava").encoder
    async with replicas() as some:

        def share(name):
            def shared(cache):
                some.all[name] = SharedFeatures(name, cache, CPU, lambda: some.directory)
                some.all[name].start()
                return some.all[name]

            return shared

        first, second = (pipeline_of(encoder, cache_bytes=2**24, shared=share(name)) for name in ("first", "second"))
        known, new = image_of(SIZES[0]), image_of(SIZES[1])
        asked = request_of(known, cache_salt="mine")
        answered = await ask(first, asked)
        await soon(lambda: some.all["second"]._elsewhere)
        other_tenant = await ask(second, request_of(known, cache_salt="other"))
        follow_up = await ask(second, request_of(new, known, cache_salt="mine"))
        assert (answered.cache_hits, other_tenant.cache_hits, follow_up.cache_hits) == (0, 0, 1)
        assert follow_up.images[1] == answered.images[0]
        assert (await ask(second, asked)).cache_hits == 1
