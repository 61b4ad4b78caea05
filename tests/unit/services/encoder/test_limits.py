"""What a request may cost is known, and refused if it is too much, before any of it runs."""

import asyncio

import pytest

from fsr.common.errors import InvalidRequest
from fsr.v1 import types_pb2
from fsr_core import Budget, create, methods
from fsr_core.backbones import load_encoder
from fsr_core.pictures import PictureFile
from helpers import checkpoints
from helpers.benches import SIZES
from helpers.encoder_requests import FRAMES, answer, image_of, pipeline_of, request_of, video_of

CHUNK = 75  # tokens that CLIP reads at a time


@pytest.fixture
def unread(monkeypatch):
    """Fails a test in which a tower runs."""

    def fail(*args):
        pytest.fail("a tower runs")

    def forbid(encoder):
        for name in ("encode_images", "encode_instructions"):
            monkeypatch.setattr(encoder, name, fail)
        return encoder

    return forbid


def jobs(pipeline, request):
    return asyncio.run(pipeline.jobs(request))


@pytest.fixture(scope="module")
def tiny():
    return load_encoder("fsr-tiny")


@pytest.mark.parametrize("question", ["a" * 60_000, "where is it? " * 5000, "where is the red star? " * 201])
def test_instruction_when_it_is_too_long_then_refused_before_a_tower_reads_it(tiny, unread, question):
    with pytest.raises(InvalidRequest, match=r"^instruction: takes more than 16 parts of about 70 tokens; shorten it"):
        jobs(pipeline_of(unread(tiny)), request_of(image_of(SIZES[0]), instruction=question))


def test_instruction_when_it_is_as_long_as_allowed_then_answered(tiny):
    words = " ".join(["star"] * CHUNK * 2)
    assert tiny.instruction_chunks(words) == 2
    assert answer(pipeline_of(tiny, max_instruction_chunks=2), request_of(image_of(SIZES[0]), instruction=words)).images
    with pytest.raises(InvalidRequest, match="more than 2 parts"):
        jobs(pipeline_of(tiny, max_instruction_chunks=2), request_of(image_of(SIZES[0]), instruction=words + " a"))


def test_instruction_when_it_has_no_words_then_refused_before_it_joins_a_batch(bench, tmp_path, unread):
    """SigLIP reads no punctuation."""
    llava = bench("llava_onevision")
    checkpoints.siglip(llava.encoder.vision.tower, tmp_path)
    encoder = unread(load_encoder(str(llava.folder), clip=str(tmp_path)))
    with pytest.raises(InvalidRequest, match=r"^instruction: has no words"):
        jobs(pipeline_of(encoder), request_of(image_of(SIZES[0]), instruction="?!"))


def test_instruction_when_the_family_does_not_read_it_then_any_length_is_answered(bench):
    request = request_of(image_of(SIZES[0]), instruction="a" * 10**6)
    assert answer(pipeline_of(bench("qwen2_vl").encoder), request).images


def test_tokens_when_a_request_has_too_many_then_refused_before_a_tower_sees_them(bench):
    pipeline = pipeline_of(bench("qwen2_5_vl").encoder)
    picture, video = image_of(SIZES[0]), video_of()
    counts = [image.source_tokens for image in answer(pipeline, request_of(picture, video)).images]
    exact = pipeline_of(bench("qwen2_5_vl").encoder, max_request_tokens=sum(counts))
    assert len(jobs(exact, request_of(picture, video))) == 2
    low = pipeline_of(bench("qwen2_5_vl").encoder, max_request_tokens=sum(counts) - 1)
    with pytest.raises(InvalidRequest, match=rf"^images: {sum(counts)} visual tokens before .* send fewer or smaller"):
        jobs(low, request_of(picture, video))


def test_frames_when_they_have_too_many_tokens_then_refused_before_any_is_decoded(bench):
    """Each frame is scaled up: many small ones take seconds and gigabytes to prepare."""
    encoder = bench("qwen2_5_vl").encoder
    video = video_of()
    tokens = encoder.video_tokens(len(video.frames), FRAMES[0].size)
    damaged = types_pb2.Image(frames=[frame[: len(frame) // 2] for frame in video.frames], frames_per_second=2)
    with pytest.raises(InvalidRequest, match=r"^images\[0\]\.frames\[0\]: is truncated or damaged"):
        jobs(pipeline_of(encoder, max_request_tokens=tokens), request_of(damaged))
    for images in ([damaged], [image_of(SIZES[0]), damaged]):
        with pytest.raises(InvalidRequest, match=rf"^images: {tokens} visual tokens before compression are more than"):
            jobs(pipeline_of(encoder, max_request_tokens=tokens - 1), request_of(*images))


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
def test_tokens_when_an_image_is_prepared_are_known(bench, name):
    """Exactly, or as a bound where the layout cuts padding off."""
    pipeline = pipeline_of(bench(name).encoder)
    requests = [request_of(image_of(size)) for size in SIZES]
    if name in checkpoints.VIDEO:
        requests.append(request_of(video_of()))
    for request in requests:
        (job,) = jobs(pipeline, request)
        known = sum(bench(name).encoder.token_counts(job.prepared))
        real = answer(pipeline, request).images[0].source_tokens
        assert real <= known <= 4 * real
        assert known == real or name in ("llava_next", "llava_onevision")


def test_comparisons_when_a_method_needs_too_many_then_refused_before_it_runs(bench, unread):
    """The largest pictures of Qwen-VL have 16,384 tokens; the default refuses the slow methods at large budgets."""
    n, most = 16_384, 2**29
    fast = {name for name in methods() if create(name).comparisons(n, Budget(keep_ratio=0.9)) <= most}
    slow = {"anchorprune", "cdpruner", "cenprune", "fsr_volume", "scope", "spare", "vispruner"}
    assert fast == set(methods()) - slow
    assert create("fsr").comparisons(n, Budget(auto=True)) <= most
    assert all(create(name).comparisons(2880, Budget(tokens=640)) <= most for name in methods())
    encoder = bench("qwen2_5_vl").encoder
    (image,) = answer(pipeline_of(encoder), request_of(image_of(SIZES[0]))).images
    allowed = create("scope").comparisons(image.source_tokens, Budget(tokens=3))
    request = request_of(image_of(SIZES[0]), budget=3, method=types_pb2.Method(name="scope"))
    assert len(jobs(pipeline_of(encoder, max_comparisons=allowed), request)) == 1
    with pytest.raises(InvalidRequest, match=rf"^budget: scope would compare {allowed} pairs of tokens .*; keep fewer"):
        jobs(pipeline_of(encoder, max_comparisons=allowed - 1), request)


def test_comparisons_when_the_features_are_cached_are_the_same(bench):
    encoder = bench("internvl").encoder
    for spread in (types_pb2.SPREAD_EVEN, types_pb2.SPREAD_FREE):
        request = request_of(image_of(SIZES[0]), budget=5, spread=spread, method=types_pb2.Method(name="divprune"))
        pipeline = pipeline_of(encoder, cache_bytes=2**24, max_comparisons=10**6)
        (new,) = jobs(pipeline, request)
        answer(pipeline, request)
        (cached,) = jobs(pipeline, request)
        assert new.features is None and cached.prepared is None and new.size == cached.size


def test_job_when_it_costs_more_then_it_takes_more_of_a_batch(tiny):
    request, tokens = request_of(image_of(SIZES[0])), 144
    sizes = [
        jobs(pipeline_of(tiny, max_request_tokens=limit), request)[0].size
        for limit in (100 * tokens, 2 * tokens, tokens)
    ]
    assert sizes == [1, 8, 16]


def test_request_when_its_picture_is_known_is_checked_like_the_first(tiny, monkeypatch):
    """It is not read again, and not by another tenant: only whoever has sent it finds that it is known."""
    pipeline, picture = pipeline_of(tiny, cache_bytes=2**20, max_request_pixels=10_000), image_of((80, 80))
    first = answer(pipeline, request_of(picture, cache_salt="a"))
    opened = []
    monkeypatch.setattr("fsr.encoder.images.decode.PictureFile", lambda *args: opened.append(1) or PictureFile(*args))
    again = answer(pipeline, request_of(picture, cache_salt="a"))
    assert again.images == first.images and (again.cache_hits, opened) == (1, [])
    with pytest.raises(InvalidRequest, match="12800 pixels together exceed 10000"):
        answer(pipeline, request_of(picture, picture, cache_salt="a"))
    with pytest.raises(InvalidRequest, match="instruction: takes more than 16 parts"):
        answer(pipeline, request_of(picture, cache_salt="a", instruction="a" * 60_000))
    assert not opened
    assert answer(pipeline, request_of(picture, cache_salt="b")).cache_hits == 0 and opened
