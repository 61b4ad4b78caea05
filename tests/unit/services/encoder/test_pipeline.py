"""The encoder's pipeline without Ray: batches, deadlines, and the feature cache."""

import asyncio
import gc
import itertools
import weakref
from contextlib import suppress
from dataclasses import replace

import pytest

from fsr.common.errors import Expired, InvalidRequest, Overloaded
from fsr.common.telemetry.tracing import traces
from fsr.encoder.cache import cache_key
from fsr.v1 import types_pb2
from helpers import checkpoints
from helpers.benches import SIZES
from helpers.collector import collector
from helpers.encoder_requests import FRAMES, answer, image_of, pipeline_of, request_of, video_of

CACHE_BYTES = 2**24


async def never(job):
    await asyncio.sleep(60)


def jobs_of(pipeline, *requests):
    return [job for request in requests for job in asyncio.run(pipeline.jobs(request))]


def test_batch_when_one_job_is_wrong_then_the_others_succeed(bench):
    """As a method of another package may fail."""
    batches = []
    pipeline = pipeline_of(bench("llava").encoder, on_batch=lambda size, *seconds: batches.append(size))
    first, wrong, last = jobs_of(pipeline, *[request_of(image_of(SIZES[0]))] * 3)
    wrong = replace(wrong, plan=replace(wrong.plan, compressor=None))
    outcomes = pipeline.run_batch([first, wrong, last])
    assert len(outcomes[0].kept) == len(outcomes[2].kept) == 9
    assert isinstance(outcomes[1], AttributeError)
    assert batches == [1, 1]


def test_batch_when_a_share_is_out_of_the_policy_s_bounds_then_only_its_job_is_refused(bench):
    """The batch runs once: the tower's work for the others is not done again."""
    batches = []
    pipeline = pipeline_of(bench("llava").encoder, on_batch=lambda size, *seconds: batches.append(size))
    share, bounds = types_pb2.Budget(keep_ratio=1.0), types_pb2.TokenBounds(max_tokens=4)
    requests = [
        request_of(image_of(SIZES[0])),
        request_of(image_of(SIZES[0]), budget_message=share, bounds=bounds),
        request_of(
            image_of(SIZES[0]), budget_message=share, bounds=bounds, budget_chosen_by=types_pb2.CHOSEN_BY_POLICY
        ),
    ]
    first, refused, narrowed = pipeline.run_batch(jobs_of(pipeline, *requests))
    assert len(first.kept) == 9 and len(narrowed.kept) == 4 and batches == [3]
    with pytest.raises(InvalidRequest, match=r"1 of \d+ tokens are \d+, more than 4, the most that the policy allows"):
        raise refused


def test_share_when_a_picture_has_tiles_is_of_all_its_tokens(bench):
    """Each picture of a request has its own number of tokens, and one that is out of bounds refuses the request."""
    pipeline, share = pipeline_of(bench("llava_next").encoder), types_pb2.Budget(keep_ratio=0.5)
    counts = [image.source_tokens for image in answer(pipeline, request_of(*map(image_of, SIZES))).images]
    halves = [int(count / 2 + 0.5) for count in counts]
    within = request_of(
        *map(image_of, SIZES), budget_message=share, bounds=types_pb2.TokenBounds(max_tokens=max(halves))
    )
    assert [len(image.index) for image in answer(pipeline, within).images] == halves
    beyond = request_of(*map(image_of, SIZES), budget_message=share, bounds=types_pb2.TokenBounds(max_tokens=8))
    with pytest.raises(InvalidRequest, match=rf"0\.5 of {counts[0]} tokens are {halves[0]}, more than 8"):
        answer(pipeline, beyond)
    beyond.budget_chosen_by = types_pb2.CHOSEN_BY_POLICY
    assert [len(image.index) for image in answer(pipeline, beyond).images] == [8, 8]


def test_batch_when_a_deadline_has_passed_then_that_job_is_not_run(bench):
    batches = []
    pipeline = pipeline_of(bench("llava").encoder, on_batch=lambda size, *seconds: batches.append(size))
    late = [replace(job, deadline=0.0) for job in jobs_of(pipeline, request_of(image_of(SIZES[0])))]
    in_time = jobs_of(pipeline, request_of(image_of(SIZES[0]), timeout_seconds=3600))
    unlimited = jobs_of(pipeline, request_of(image_of(SIZES[0])))
    first, expired, last = pipeline.run_batch([*in_time, *late, *unlimited])
    assert isinstance(expired, Overloaded) and len(first.kept) == len(last.kept) == 9
    assert isinstance(pipeline.run_batch(late)[0], Overloaded)
    assert batches == [2]


def test_answer_when_the_deadline_passes_before_the_work_begins_then_overloaded(bench):
    """So a gateway may ask another encoder."""
    pipeline = pipeline_of(bench("llava").encoder)
    with pytest.raises(Overloaded, match="did not come to the images in time"):
        answer(pipeline, request_of(image_of(SIZES[0]), timeout_seconds=1e-6))
    with pytest.raises(Overloaded):
        asyncio.run(pipeline.answer(request_of(image_of(SIZES[0]), timeout_seconds=0.5), never))


def test_answer_when_the_deadline_passes_in_a_batch_then_expired_without_waiting_for_its_end(bench):
    """So a gateway asks no other encoder: it would take as long."""

    async def begin(jobs):
        assert not jobs[0].started.is_set()
        pipeline.run_batch(jobs)
        await asyncio.sleep(60)

    pipeline = pipeline_of(bench("llava").encoder)
    with pytest.raises(Expired, match="passed while the encoder worked on the images"):
        asyncio.run(pipeline.answer(request_of(image_of(SIZES[0]), timeout_seconds=2), begin))


async def test_request_when_its_batch_fails_then_it_is_not_kept(bench):
    """Its pixels may take hundreds of MiB."""
    watched = []

    async def fail(jobs):
        watched.extend(map(weakref.ref, jobs))
        return [InvalidRequest("wrong")]

    pipeline = pipeline_of(bench("llava").encoder)
    gc.collect()
    gc.disable()
    try:
        with suppress(InvalidRequest):
            await pipeline.answer(request_of(image_of(SIZES[0])), fail)
        await asyncio.sleep(0)  # the event loop keeps what it is calling
        assert [job() for job in watched] == [None]
    finally:
        gc.enable()


def test_answer_when_there_is_no_image_then_refused(bench):
    with pytest.raises(InvalidRequest, match="images: is empty"):
        answer(pipeline_of(bench("llava").encoder), request_of())


def test_answer_when_it_exceeds_a_message_then_refused(bench, monkeypatch):
    monkeypatch.setattr("fsr.common.wire.message_size.MESSAGE_BYTES", 100)
    with pytest.raises(InvalidRequest, match=r"^budget: the kept tokens take \d+ bytes, more than 100; keep fewer"):
        answer(pipeline_of(bench("llava").encoder), request_of(image_of(SIZES[0])))


def test_answer_when_the_features_are_cached_then_it_is_the_same(bench):
    pipeline = pipeline_of(bench("llava").encoder, cache_bytes=CACHE_BYTES)
    request = request_of(*map(image_of, SIZES))
    first, second = answer(pipeline, request), answer(pipeline, request)
    assert (first.cache_hits, second.cache_hits) == (0, 2) and pipeline.cache_bytes > 0
    assert first.images == second.images and first.fingerprint == second.fingerprint


def test_cache_when_videos_differ_in_frames_or_speed_then_no_hit():
    videos = video_of(), video_of(FRAMES[:2]), video_of(FRAMES[::-1]), video_of(fps=1.0)
    assert len({cache_key(video, multi_image, "") for video in videos for multi_image in (False, True)}) == 4


def test_text_tower_when_images_share_a_question_then_it_reads_it_once(bench, monkeypatch):
    encoder, read = bench("llava").encoder, []
    embed = encoder.encode_instructions
    monkeypatch.setattr(encoder, "encode_instructions", lambda texts: read.extend(texts) or embed(texts))
    assert len(answer(pipeline_of(encoder), request_of(*map(image_of, SIZES))).images) == 2
    assert len(read) == 1


def test_cache_when_tenants_send_the_same_picture_then_each_has_its_own_features(bench):
    pipeline = pipeline_of(bench("llava").encoder, cache_bytes=CACHE_BYTES)
    hits = [
        answer(pipeline, request_of(image_of(SIZES[0]), cache_salt=salt)).cache_hits
        for salt in ("a", "b", "a", "", "", "b")
    ]
    assert hits == [0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
def test_cache_when_an_image_is_one_of_several_then_hit_only_if_prepared_alike(bench, name):
    """LLaVA-OneVision alone prepares one of several pictures differently. A video beside it changes nothing."""
    pipeline, image = pipeline_of(bench(name).encoder, cache_bytes=CACHE_BYTES), image_of(SIZES[0])
    answer(pipeline, request_of(image))
    hits = answer(pipeline, request_of(image, image)).cache_hits
    assert hits == (0 if name == "llava_onevision" else 2)
    if name in checkpoints.VIDEO:
        assert answer(pipeline, request_of(image, video_of())).cache_hits == 1


def test_trace_when_the_images_of_a_request_are_in_two_batches_has_the_stages_of_both(bench):
    pipeline = pipeline_of(bench("llava").encoder)

    async def alone(jobs):
        return [pipeline.run_batch([job])[0] for job in jobs]

    with collector() as receiver:
        with traces("encoder", receiver.address) as tracer:
            span = tracer.request("encode", tuple, begins=True)
            asyncio.run(pipeline.answer(request_of(image_of(SIZES[0]), image_of(SIZES[1])), alone, span))
            span.end()
        encode, preprocess, *stages = receiver.spans()
    assert (encode.name, preprocess.name) == ("encode", "preprocess")
    assert sorted(stage.name for stage in stages) == sorted(["queue", "tower", "text", "compress"] * 2)
    assert {stage.attributes["fsr.batch_size"] for stage in stages if stage.name == "tower"} == {1}
    in_order = [stage for stage in stages if stage.name != "queue"]
    assert [stage.name for stage in in_order] == ["tower", "text", "compress"] * 2
    edges = [edge for stage in in_order for edge in (stage.start, stage.end)]
    assert all(later - earlier > -1e6 for earlier, later in itertools.pairwise([preprocess.end, *edges, encode.end]))
