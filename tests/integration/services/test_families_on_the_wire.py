"""Encoder pipeline -> protobuf bytes -> decoder's prompt, for every family: nothing is lost or moved on the way."""

from types import SimpleNamespace

import pytest
import torch

from fsr.client import ImageTokens
from fsr.common.errors import InvalidRequest
from fsr.decoder.prompts import prompt_of
from fsr.gateway.hops.usage import usage_of
from fsr.gateway.telemetry.request_record import RequestRecord
from fsr.v1 import decoder_pb2, encoder_pb2, types_pb2
from fsr_core.backbones import ImagePart, Message, TextPart
from helpers import checkpoints
from helpers.benches import ALL, QUESTION, SIZES, picture, shown
from helpers.encoder_requests import FRAMES, compressed_images, image_of, request_of, video_of

NAMES = tuple(checkpoints.FAMILIES)


def decode(family, images, message=None):
    parts = [types_pb2.Part(image=i) for i in range(len(images))]
    message = message or types_pb2.Message(role=types_pb2.ROLE_USER, parts=[*parts, types_pb2.Part(text=QUESTION)])
    request = decoder_pb2.DecodeRequest(fingerprint=family.encoder.fingerprint, messages=[message], images=images)
    return prompt_of(decoder_pb2.DecodeRequest.FromString(request.SerializeToString()), family.decoder)


@pytest.mark.parametrize("spread", ["even", "free"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, kind) for n in NAMES for kind in ("picture", "pictures")] + [(n, "video") for n in checkpoints.VIDEO],
)
def test_prompt_over_the_wire_equals_the_prompt_without(bench, name, kind, spread):
    family = bench(name)
    sizes = SIZES[: {"picture": 1, "pictures": 2, "video": 0}[kind]]
    pictures = [picture(size) for size in sizes]
    videos = [] if pictures else [FRAMES]
    images = [image_of(size) for size in sizes] or [video_of()]
    wire_spread = {"even": types_pb2.SPREAD_UNSPECIFIED, "free": types_pb2.SPREAD_FREE}[spread]
    actual = decode(family, compressed_images(family.encoder, request_of(*images, spread=wire_spread)))
    _, _, laid_out = shown(family, pictures, videos, budget=9, spread=spread)
    parts = (*map(ImagePart, range(len(laid_out))), TextPart(QUESTION))
    expected = family.decoder.prompt([Message("user", parts)], laid_out)
    assert torch.equal(actual.inputs_embeds, expected.inputs_embeds)
    assert torch.equal(actual.token_ids, expected.token_ids)
    for field in ("position_ids", "deepstack"):
        ours, theirs = getattr(actual, field), getattr(expected, field)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("wire_dtype", [types_pb2.DTYPE_FP32, types_pb2.DTYPE_INT8])
@pytest.mark.parametrize(("name", "kind"), [(n, "picture") for n in NAMES] + [(n, "video") for n in checkpoints.VIDEO])
def test_savings_equal_the_difference_to_all_tokens(bench, name, kind, wire_dtype):
    """For an image that is shown twice: prompt positions and bytes, with newlines and DeepStack rows."""
    family = bench(name)
    image = image_of(SIZES[0]) if kind == "picture" else video_of()
    replica = SimpleNamespace(
        cost=types_pb2.CostModel(flops_constant=5, flops_linear=3, flops_quadratic=2, kv_bytes_per_token=7)
    )
    usages, lengths, sent = {}, {}, {}
    message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(image=0)] * 2)
    for budget in (2, ALL):
        images = compressed_images(family.encoder, request_of(image, budget=budget, wire_dtype=wire_dtype))
        lengths[budget] = len(decode(family, images, message).token_ids)
        sent[budget] = sum(len(t.data) + len(t.scales) for t in (images[0].features, *images[0].deepstack))
        stats = decoder_pb2.DecodeStats(prompt_tokens=lengths[budget])
        usages[budget] = usage_of(
            encoder_pb2.EncodeResponse(images=images), [message], stats, replica, RequestRecord(request_id="r")
        )
    few, whole = usages[2], usages[ALL]
    assert (few.visual_tokens_kept, few.visual_tokens_in) == (2, whole.visual_tokens_kept)
    assert few.kv_bytes_saved == 7 * (lengths[ALL] - lengths[2])
    assert few.prefill_flops_saved == sum(
        sign * (3 * length + 2 * length**2) for sign, length in ((1, lengths[ALL]), (-1, lengths[2]))
    )
    assert (few.wire_bytes, few.wire_bytes_saved) == (sent[2], sent[ALL] - sent[2])
    assert (whole.kv_bytes_saved, whole.prefill_flops_saved, whole.wire_bytes_saved) == (0, 0, 0)


def test_explanation_has_every_view(bench):
    family = bench("llava_next")
    [image] = compressed_images(family.encoder, request_of(image_of(SIZES[0]), explain=True))
    views = image.explanation.views
    assert (views[0].start, views[0].rows, views[0].columns) == (0, 8, 8)
    assert sum(view.rows * view.columns for view in views) == image.source_tokens == len(image.explanation.priority)
    assert len(image.newlines) + len(image.index) == image.features.shape[0]


@pytest.mark.parametrize("name", NAMES)
def test_image_tokens_of_the_sdk_hold_everything_kept(bench, name):
    family = bench(name)
    _, _, [laid_out] = shown(family, [picture(SIZES[0])], budget=9)
    tokens = ImageTokens.of(compressed_images(family.encoder, request_of(image_of(SIZES[0])))[0])

    assert torch.equal(torch.from_numpy(tokens.features), laid_out.features) and tokens.dtype == "fp32"
    assert laid_out.index is None or list(tokens.newlines) == (laid_out.index < 0).nonzero().flatten().tolist()
    assert len(tokens.newlines) + len(tokens.index) == tokens.shape[0]
    assert tokens.grid == laid_out.grid
    assert list(map(list, tokens.positions)) == ([] if laid_out.positions is None else laid_out.positions.tolist())
    layers = [] if laid_out.deepstack is None else list(laid_out.deepstack)
    assert all(torch.equal(torch.from_numpy(ours), layer) for ours, layer in zip(tokens.deepstack, layers, strict=True))


@pytest.mark.parametrize("name", checkpoints.VIDEO)
@pytest.mark.parametrize("fps", [1e-6, 1e6])
def test_video_when_slowest_or_fastest_then_decoded(bench, name, fps):
    family = bench(name)
    assert len(decode(family, compressed_images(family.encoder, request_of(video_of(fps=fps)))).token_ids) > 9


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("llava", video_of(), r"images\[0\]: video: llava takes pictures only"),
        ("qwen2_5_vl", video_of([*FRAMES, picture((32, 48))]), "differ in size"),
        ("qwen2_5_vl", video_of(fps=1e-9), r"fps = 1e-09 is not within 1e-06\.\.1e\+06"),
        ("qwen3_vl", video_of(fps=1e9), r"fps = 1e\+09 is not within"),
        ("qwen2_5_vl", types_pb2.Image(frames=[b"no picture"]), r"images\[0\]\.frames\[0\]"),
    ],
)
def test_video_when_wrong_then_the_field_is_named(bench, name, image, reason):
    with pytest.raises(InvalidRequest, match=reason):
        compressed_images(bench(name).encoder, request_of(image))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": None}, r"images\[0\]\.positions: are missing; internvl finds the frame"),
        ({"step_seconds": [0.0]}, r"images\[0\]\.grid: 4 frames have 1 times"),
        ({"grid": types_pb2.Grid(steps=2**31, rows=3, columns=3)}, "2147483648 frames have 4 times"),
    ],
)
def test_frames_when_wrong_then_the_field_is_named(bench, changes, reason):
    family = bench("internvl")
    message = compressed_images(family.encoder, request_of(video_of()))[0]
    with pytest.raises(InvalidRequest, match=reason):
        decode(family, [damaged(message, **changes)])


def damaged(message, **changes):
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
    ("name", "changes", "reason"),
    [
        ("qwen2_5_vl", {"positions": None}, r"images\[0\]\.positions: are missing"),
        ("qwen2_5_vl", {"grid": None}, r"images\[0\]\.positions: are missing"),
        ("qwen2_5_vl", {"positions": [0, 0]}, "three a kept token"),
        ("qwen2_5_vl", {"positions": [0, 0, 0]}, r"expected \[9, 3\]"),
        ("qwen2_5_vl", {"grid": types_pb2.Grid(steps=1, rows=1, columns=1)}, "outside the grid"),
        ("qwen3_vl", {"deepstack": None}, "has 0 layers, qwen3_vl takes 2"),
        ("smolvlm", {"positions": None}, r"images\[0\]\.positions: are missing; smolvlm finds the view"),
        ("smolvlm", {"grid": types_pb2.Grid(steps=2, rows=10, columns=9)}, r"grid: \[2, 10, 9\] does not divide"),
        ("smolvlm", {"grid": types_pb2.Grid(steps=3, rows=9, columns=9)}, r"grid: \[3, 9, 9\] does not divide"),
        ("smolvlm", {"grid": types_pb2.Grid(steps=2, rows=3000, columns=3000)}, "views of an image take 1000000"),
    ],
)
def test_layout_when_wrong_then_the_field_is_named(bench, name, changes, reason):
    family = bench(name)
    message = compressed_images(family.encoder, request_of(image_of(SIZES[0])))[0]
    with pytest.raises(InvalidRequest, match=reason):
        decode(family, [damaged(message, **changes)])
