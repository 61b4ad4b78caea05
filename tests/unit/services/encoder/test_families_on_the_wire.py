"""Encoder pipeline -> protobuf bytes -> decoder's prompt, for every family: nothing is lost or moved on the way."""

import io
from types import SimpleNamespace

import pytest
import torch

from fsr.client import ImageTokens
from fsr.common.errors import InvalidRequest
from fsr.decoder.prompts import prompt_of
from fsr.encoder.pipeline import (
    Job,
    are_among,
    compress,
    compressed_image,
    content,
    each_alone,
    encode,
    plan_of,
    prepare,
)
from fsr.gateway.request_record import RequestRecord
from fsr.gateway.usage import usage_of
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2
from fsr_core.backbones import ImagePart, Message, TextPart, load_encoder
from helpers import checkpoints
from helpers.benches import ALL, QUESTION, SIZES, picture, shown

NAMES = tuple(checkpoints.FAMILIES)
FRAMES = [picture((48, 32), i) for i in range(4)]


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def request_of(*images, budget=9, spread=types_pb2.SPREAD_UNSPECIFIED):
    return encoder_pb2.EncodeRequest(
        images=images, instruction=QUESTION, budget=types_pb2.Budget(tokens=budget, spread=spread)
    )


def answer(own, request, wire=types_pb2.DTYPE_UNSPECIFIED, explain=False):
    plan, among = plan_of(request), are_among(own.encoder, request.images)
    jobs = [
        Job(plan, prepare(own.encoder, image, f"images[{i}]", 10**6, among), None)
        for i, image in enumerate(request.images)
    ]
    pairs = encode(own.encoder, jobs)
    kept = compress(jobs, pairs)
    return [
        compressed_image(f, k, own.encoder.assemble(f, k), wire, explain) for (f, _), k in zip(pairs, kept, strict=True)
    ]


def test_what_is_wrong_with_one_of_a_batch_fails_no_other(bench, tmp_path):
    """SigLIP reads no punctuation, so a question may hold nothing for it, which only its tokenizer can tell."""
    own = bench("llava_onevision")
    checkpoints.siglip(own.encoder.vision.tower, tmp_path)
    encoder = load_encoder(str(own.folder), clip=str(tmp_path))
    jobs = []
    for question in ("what?", "?!", "where?"):
        request = request_of(types_pb2.Image(data=png(picture(SIZES[0]))))
        request.instruction = question
        jobs.append(Job(plan_of(request), prepare(encoder, request.images[0], "images[0]", 10**6), None))
    one, wrong, other = each_alone(lambda some: compress(some, encode(encoder, some)), jobs)
    assert len(one) == len(other) == 9
    assert isinstance(wrong, InvalidRequest) and "instruction: has no words" in str(wrong)


def decode(own, images, message=None):
    parts = [types_pb2.Part(image=i) for i in range(len(images))]
    message = message or types_pb2.Message(role=types_pb2.ROLE_USER, parts=[*parts, types_pb2.Part(text=QUESTION)])
    request = decoder_pb2.DecodeRequest(fingerprint=own.encoder.fingerprint, messages=[message], images=images)
    return prompt_of(decoder_pb2.DecodeRequest.FromString(request.SerializeToString()), own.decoder)


def video_of(frames=FRAMES, fps=0.0):
    return types_pb2.Image(frames=[png(frame) for frame in frames], frames_per_second=fps)


@pytest.mark.parametrize("spread", ["even", "free"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, kind) for n in NAMES for kind in ("picture", "pictures")] + [(n, "video") for n in checkpoints.VIDEO],
)
def test_the_prompt_is_the_one_without_a_wire(bench, name, kind, spread):
    own = bench(name)
    pictures = [picture(size) for size in SIZES[: {"picture": 1, "pictures": 2}.get(kind, 0)]]
    videos = [] if pictures else [FRAMES]
    images = [types_pb2.Image(data=png(one)) for one in pictures] or [video_of()]
    wire = {"even": types_pb2.SPREAD_UNSPECIFIED, "free": types_pb2.SPREAD_FREE}[spread]
    got = decode(own, answer(own, request_of(*images, spread=wire)))
    _, _, laid = shown(own, pictures, videos, budget=9, spread=spread)
    want = own.decoder.prompt([Message("user", (*map(ImagePart, range(len(laid))), TextPart(QUESTION)))], laid)
    assert torch.equal(got.inputs_embeds, want.inputs_embeds)
    assert torch.equal(got.token_ids, want.token_ids)
    for mine, theirs in ((got.position_ids, want.position_ids), (got.deepstack, want.deepstack)):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("wire", [types_pb2.DTYPE_FP32, types_pb2.DTYPE_INT8])
@pytest.mark.parametrize(("name", "kind"), [(n, "picture") for n in NAMES] + [(n, "video") for n in checkpoints.VIDEO])
def test_savings_are_what_all_tokens_would_have_taken(bench, name, kind, wire):
    """Places in the prompt with newlines, bytes with newlines and DeepStack rows, of an image that is shown twice."""
    own = bench(name)
    image = types_pb2.Image(data=png(picture(SIZES[0]))) if kind == "picture" else video_of()
    replica = SimpleNamespace(
        cost=types_pb2.CostModel(flops_constant=5, flops_linear=3, flops_quadratic=2, kv_bytes_per_token=7)
    )
    told, lengths, sent = {}, {}, {}
    shown = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(image=0)] * 2)
    for budget in (2, ALL):
        images = answer(own, request_of(image, budget=budget), wire)
        lengths[budget] = len(decode(own, images, shown).token_ids)
        sent[budget] = sum(len(t.data) + len(t.scales) for t in (images[0].features, *images[0].deepstack))
        stats = decoder_pb2.DecodeStats(prompt_tokens=lengths[budget])
        told[budget] = usage_of(
            encoder_pb2.EncodeResponse(images=images), [shown], stats, replica, RequestRecord(request_id="r")
        )
    few, whole = told[2], told[ALL]
    assert (few.visual_tokens_kept, few.visual_tokens_in) == (2, whole.visual_tokens_kept)
    assert few.kv_bytes_saved == 7 * (lengths[ALL] - lengths[2])
    assert few.prefill_flops_saved == sum(
        sign * (3 * length + 2 * length**2) for sign, length in ((1, lengths[ALL]), (-1, lengths[2]))
    )
    assert (few.wire_bytes, few.wire_bytes_saved) == (sent[2], sent[ALL] - sent[2])
    assert (whole.kv_bytes_saved, whole.prefill_flops_saved, whole.wire_bytes_saved) == (0, 0, 0)


def test_an_explanation_shows_every_view(bench):
    own = bench("llava_next")
    told = answer(own, request_of(types_pb2.Image(data=png(picture(SIZES[0])))), explain=True)[0]
    views = told.explanation.views
    assert (views[0].start, views[0].rows, views[0].columns) == (0, 8, 8)
    assert sum(view.rows * view.columns for view in views) == told.source_tokens == len(told.explanation.priority)
    assert len(told.newlines) + len(told.index) == told.features.shape[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_tells_all_that_another_language_model_needs(bench, name):
    own = bench(name)
    _, _, [laid] = shown(own, [picture(SIZES[0])], budget=9)
    told = ImageTokens.of(answer(own, request_of(types_pb2.Image(data=png(picture(SIZES[0])))))[0])

    def rows(data):
        return torch.frombuffer(bytearray(data), dtype=torch.float32).view(-1, told.shape[1])

    assert torch.equal(rows(told.features), laid.features) and told.dtype == "fp32"
    assert laid.index is None or list(told.newlines) == (laid.index < 0).nonzero().flatten().tolist()
    assert len(told.newlines) + len(told.index) == told.shape[0]
    assert told.grid == laid.grid
    assert list(map(list, told.positions)) == ([] if laid.positions is None else laid.positions.tolist())
    layers = [] if laid.deepstack is None else list(laid.deepstack)
    assert all(torch.equal(rows(data), layer) for (data, _), layer in zip(told.deepstack, layers, strict=True))


@pytest.mark.parametrize("name", checkpoints.VIDEO)
@pytest.mark.parametrize("fps", [1e-6, 1e6])
def test_the_slowest_and_the_fastest_video_fit_the_wire(bench, name, fps):
    own = bench(name)
    assert len(decode(own, answer(own, request_of(video_of(fps=fps)))).token_ids) > 9


def test_videos_differ_by_frames_and_speed():
    videos = video_of(), video_of(FRAMES[:2]), video_of(FRAMES[::-1]), video_of(fps=1.0)
    assert len({content(video, among) for video in videos for among in (False, True)}) == 4


def test_one_of_several_pictures_is_known_apart_where_it_is_seen_otherwise(bench):
    image = types_pb2.Image(data=png(picture(SIZES[0])))
    assert content(image, among=False) != content(image, among=True)
    assert [name for name in NAMES if are_among(bench(name).encoder, [image, image])] == ["llava_onevision"]
    assert not are_among(bench("llava_onevision").encoder, [image, video_of()])


@pytest.mark.parametrize(
    ("name", "image", "says"),
    [
        ("llava", video_of(), r"images\[0\]: video: llava takes pictures only"),
        ("qwen2_5_vl", video_of([*FRAMES, picture((32, 48))]), "differ in size"),
        ("qwen2_5_vl", video_of(fps=1e-9), r"fps = 1e-09 is not within 1e-06\.\.1e\+06"),
        ("qwen3_vl", video_of(fps=1e9), r"fps = 1e\+09 is not within"),
        ("qwen2_5_vl", types_pb2.Image(frames=[b"no picture"]), r"images\[0\]\.frames\[0\]"),
    ],
)
def test_bad_videos_are_named(bench, name, image, says):
    with pytest.raises(InvalidRequest, match=says):
        answer(bench(name), request_of(image))


def spoilt(message, **changes):
    for name, value in changes.items():
        if value is None:
            message.ClearField(name)
        elif name == "grid":
            message.grid.CopyFrom(value)
        else:
            del getattr(message, name)[:]
            getattr(message, name).extend(value)
    return message


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("qwen2_5_vl", {"positions": None}, r"images\[0\]\.positions: are missing"),
        ("qwen2_5_vl", {"grid": None}, r"images\[0\]\.positions: are missing"),
        ("qwen2_5_vl", {"positions": [0, 0]}, "three a kept token"),
        ("qwen2_5_vl", {"positions": [0, 0, 0]}, r"expected \[9, 3\]"),
        ("qwen2_5_vl", {"grid": types_pb2.Grid(steps=1, rows=1, columns=1)}, "outside the grid"),
        ("qwen3_vl", {"deepstack": None}, "has 0 layers, qwen3_vl takes 2"),
    ],
)
def test_bad_layouts_are_named(bench, name, changes, says):
    own = bench(name)
    message = answer(own, request_of(types_pb2.Image(data=png(picture(SIZES[0])))))[0]
    with pytest.raises(InvalidRequest, match=says):
        decode(own, [spoilt(message, **changes)])
