"""The encoder's pipeline without Ray: batches, deadlines, and the feature cache."""

import asyncio

import pytest

from fsr.common.errors import Expired, InvalidRequest
from fsr.encoder.cache import cache_key
from fsr.v1 import types_pb2
from fsr_core.backbones import load_encoder
from helpers import checkpoints
from helpers.benches import SIZES
from helpers.encoder_requests import FRAMES, answer, image_of, pipeline_of, request_of, video_of

CACHE_BYTES = 2**24


def jobs_of(pipeline, *requests):
    return [job for request in requests for job in asyncio.run(pipeline.jobs(request))]


def test_batch_when_one_job_is_wrong_then_the_others_succeed(bench, tmp_path):
    """SigLIP reads no punctuation, so only its tokenizer can tell that a question holds no words."""
    llava = bench("llava_onevision")
    checkpoints.siglip(llava.encoder.vision.tower, tmp_path)
    batches = []
    pipeline = pipeline_of(
        load_encoder(str(llava.folder), clip=str(tmp_path)), on_batch=lambda size, *seconds: batches.append(size)
    )
    requests = [request_of(image_of(SIZES[0]), instruction=question) for question in ("what?", "?!", "where?")]
    first, wrong, last = pipeline.run_batch(jobs_of(pipeline, *requests))
    assert len(first.kept) == len(last.kept) == 9
    assert isinstance(wrong, InvalidRequest) and "instruction: has no words" in str(wrong)
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
    late = jobs_of(pipeline, request_of(image_of(SIZES[0]), timeout_seconds=1e-6))
    in_time = jobs_of(pipeline, request_of(image_of(SIZES[0]), timeout_seconds=3600))
    unlimited = jobs_of(pipeline, request_of(image_of(SIZES[0])))
    first, expired, last = pipeline.run_batch([*in_time, *late, *unlimited])
    assert isinstance(expired, Expired) and len(first.kept) == len(last.kept) == 9
    assert isinstance(pipeline.run_batch(late)[0], Expired)
    assert batches == [2]


def test_answer_when_the_deadline_has_passed_then_expired(bench):
    with pytest.raises(Expired, match="deadline: passed before the encoder came to it"):
        answer(pipeline_of(bench("llava").encoder), request_of(image_of(SIZES[0]), timeout_seconds=1e-6))


def test_answer_when_there_is_no_image_then_refused(bench):
    with pytest.raises(InvalidRequest, match="images: is empty"):
        answer(pipeline_of(bench("llava").encoder), request_of())


def test_answer_when_it_exceeds_a_message_then_refused(bench, monkeypatch):
    monkeypatch.setattr("fsr.common.message_size.MESSAGE_BYTES", 100)
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
    assert len({cache_key(video, multi_image) for video in videos for multi_image in (False, True)}) == 4


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
def test_cache_when_an_image_is_one_of_several_then_hit_only_if_prepared_alike(bench, name):
    """LLaVA-OneVision alone prepares one of several pictures differently. A video beside it changes nothing."""
    pipeline, image = pipeline_of(bench(name).encoder, cache_bytes=CACHE_BYTES), image_of(SIZES[0])
    answer(pipeline, request_of(image))
    hits = answer(pipeline, request_of(image, image)).cache_hits
    assert hits == (0 if name == "llava_onevision" else 2)
    if name in checkpoints.VIDEO:
        assert answer(pipeline, request_of(image, video_of())).cache_hits == 1
