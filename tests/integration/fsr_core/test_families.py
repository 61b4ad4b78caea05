"""Every family against the library's own model: pixels, layout, logits, greedy ids; with all tokens and with few."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers
from packaging.version import Version

from fsr_core import Budget, create
from fsr_core.backbones import FAMILIES, ImagePart, Message, TextPart, load_encoder
from fsr_core.backbones.registry import wrap_encoder
from fsr_core.backbones.vision.frames import evenly
from fsr_core.backbones.vision.image_processors import video_settings
from fsr_core.spread import compress_images
from helpers import checkpoints, layout
from helpers.benches import ALL, QUESTION, SIZES, chat, continue_greedily, picture, pixels_of, prefill, shown

NAMES = tuple(checkpoints.FAMILIES)
FRAMES = [picture((48, 32), i) for i in range(3)]
CHATS = {
    "one picture": (("user", picture(SIZES[0]), QUESTION),),
    "another shape": (("user", picture(SIZES[1], 1), QUESTION),),
    "two pictures": (("user", picture(SIZES[0]), picture(SIZES[1], 1), QUESTION),),
    "a later picture": (
        ("user", picture(SIZES[0]), QUESTION),
        ("assistant", "the seconds"),
        ("user", picture(SIZES[1], 1), "and here?"),
    ),
    "text alone": (("user", QUESTION),),
    "a video": (("user", FRAMES, QUESTION),),
    "a video before a picture": (
        ("user", FRAMES, picture(SIZES[0]), QUESTION),
        ("assistant", "the seconds"),
        ("user", "and here?", picture(SIZES[1], 1)),
    ),
}


def prompt_equal_to_library(family, messages, laid, inputs):
    """The prompt; asserts that its ids and logits equal the library's."""
    prompt = family.decoder.prompt(messages, laid)
    batch = prefill(family.decoder, prompt)
    assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        want = family.whole(**inputs).logits[0]
        got = family.decoder.model(**batch.inputs({"inputs_embeds": batch.embeds})).logits[0]
    assert torch.allclose(got, want, atol=1e-4)
    return prompt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("talk", CHATS)
def test_all_tokens_equal_the_library(bench, name, talk):
    if "video" in talk and name not in checkpoints.VIDEO:
        pytest.skip("takes pictures only")
    family = bench(name)
    messages, inputs, pictures, videos = chat(family, *CHATS[talk])
    _, _, laid = shown(family, pictures, videos)
    prompt = prompt_equal_to_library(family, messages, laid, inputs)
    ids = family.whole.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert continue_greedily(family.decoder, prompt, 8) == ids


@pytest.mark.parametrize("name", checkpoints.TWINS)
def test_twin_family_equals_the_library(bench, name):
    family = bench(name)
    messages, inputs, pictures, _ = chat(family, *CHATS["two pictures"])
    prompt_equal_to_library(family, messages, shown(family, pictures)[2], inputs)
    prepared = torch.cat([pixels_of(family.encoder.preprocess(one)) for one in pictures])
    assert torch.equal(prepared, inputs["pixel_values"][0])


@pytest.mark.parametrize("name", checkpoints.VIDEO)
@pytest.mark.parametrize("fps", [4.0, 1.5])
def test_fractional_video_steps_equal_the_library(bench, name, fps, monkeypatch):
    """Times and temporal positions."""
    if name == "qwen2_5_vl" and Version(transformers.__version__) < Version("5.18"):
        pytest.skip("the class cuts the step to whole seconds")
    family = bench(name)
    monkeypatch.setattr(family.processor.video_processor, "seconds", fps)
    messages, inputs, _, videos = chat(family, ("user", [picture((48, 32), i) for i in range(6)], QUESTION))
    _, _, laid = shown(family, (), videos, fps=fps)
    prompt_equal_to_library(family, messages, laid, inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", ["even", "free"])
@pytest.mark.parametrize("budget", [5, 13])
def test_kept_tokens_keep_their_places(bench, name, spread, budget):
    """Embeddings, positions, newlines and order, against the library's full prompt without the dropped places."""
    family = bench(name)
    for size in SIZES:
        messages, inputs, pictures, _ = chat(family, ("user", picture(size), QUESTION))
        images, kept, laid = shown(family, pictures, budget=budget, spread=spread)
        # Merged anchors differ from their source rows; this test is about layout, so they are put back.
        source, rows = laid[0].features.clone(), laid[0].index >= 0
        source[rows] = images[0].features[laid[0].index[rows]]
        prompt = family.decoder.prompt(messages, [replace(laid[0], features=source)])
        embeds, positions, mask, layers = layout.expected(family, inputs, kept[0].index)
        assert len(kept[0]) == budget
        assert torch.allclose(prompt.inputs_embeds, embeds, atol=1e-5)
        assert prompt.visual_mask.tolist() == mask.tolist()
        assert positions is None or torch.equal(prompt.position_ids, positions)
        ids = layout.greedy(family.whole, embeds, positions, mask, layers, 6, family.decoder.eos_token_ids)
        assert continue_greedily(family.decoder, prompt, 6) == ids


@pytest.mark.parametrize("name", checkpoints.VIDEO)
@pytest.mark.parametrize("spread", ["even", "free"])
def test_kept_tokens_of_a_video_keep_their_places(bench, name, spread):
    family = bench(name)
    frames = [picture((48, 32), i) for i in range(4)]
    messages, inputs, _, videos = chat(family, ("user", frames, QUESTION))
    images, kept, laid = shown(family, (), videos, budget=9, spread=spread)
    source, rows = laid[0].features.clone(), laid[0].index >= 0
    source[rows] = images[0].features[laid[0].index[rows]]
    prompt = family.decoder.prompt(messages, [replace(laid[0], features=source)])
    embeds, positions, mask, layers = layout.expected(family, inputs, kept[0].index, video=True)
    assert torch.allclose(prompt.inputs_embeds, embeds, atol=1e-5)
    assert positions is None or torch.equal(prompt.position_ids, positions)
    ids = layout.greedy(family.whole, embeds, positions, mask, layers, 5, family.decoder.eos_token_ids)
    assert continue_greedily(family.decoder, prompt, 5) == ids


@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_the_processor(bench, name):
    family = bench(name)
    for size in SIZES:
        theirs = chat(family, ("user", picture(size), QUESTION))[1]["pixel_values"]
        ours = pixels_of(family.encoder.preprocess(picture(size)))
        assert torch.equal(ours.reshape(-1), theirs.reshape(-1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (90, 1), (1, 90), (1000, 7)])
def test_tiny_and_oblong_pictures_are_laid_out(bench, name, size):
    """A view is left out if nothing remains of it without padding."""
    family = bench(name)
    for budget, spread in ((ALL, "even"), (5, "even"), (5, "free")):
        images, kept, laid = shown(family, [picture(size)], budget=budget, spread=spread)
        n = len(images[0].features)
        assert len(kept[0]) == min(budget, n)
        assert images[0].tiles[-1].stop == n and all(tile.rows and tile.cols for tile in images[0].tiles)
        assert len(laid[0].features) == len(kept[0]) + int((laid[0].index < 0).sum())
        family.decoder.prompt([Message("user", (ImagePart(0), TextPart(QUESTION)))], laid)


@pytest.mark.parametrize("name", checkpoints.VIDEO)
def test_frames_equal_the_processor(bench, name):
    family = bench(name)
    _, inputs, _, videos = chat(family, ("user", [picture((48, 32), i) for i in range(3)], QUESTION))
    ours = family.encoder.preprocess_video(videos[0])
    theirs = inputs["pixel_values" if name == "internvl" else "pixel_values_videos"]
    assert torch.allclose(pixels_of(ours).reshape(-1), theirs.reshape(-1), atol=1e-5)
    assert len(ours.frame_seconds) == (3 if name in ("llava_onevision", "internvl") else 2)


@pytest.mark.parametrize("name", checkpoints.SHUFFLED)
def test_views_in_a_batch_are_found(bench, name):
    """The batch holds views only; which of them belong to a picture, and their rows and columns, is not in it."""
    family = bench(name)
    live = wrap_encoder(family.whole, family.processor)
    sizes = [*SIZES, (30, 90), (24, 24)]
    turn = ("user", *(picture(size, i) for i, size in enumerate(sizes)), QUESTION, "Frame1: ", picture(SIZES[0]))
    found, others = live.unbatch(chat(family, turn)[1])
    assert others == []
    for one, size in zip(found, [*sizes, SIZES[0]], strict=True):
        views = [(t.start, t.rows, t.cols, t.crop) for t in family.encoder.preprocess(picture(size)).tiles]
        across, down = one.size[0] / size[0], one.size[1] / size[1]
        scaled = [(*view, (x * across, y * down, r * across, b * down)) for *view, (x, y, r, b) in views]
        for tile, (start, rows, cols, crop) in zip(one.tiles, scaled, strict=True):
            assert (tile.start, tile.rows, tile.cols) == (start, rows, cols)
            assert tile.crop == pytest.approx(crop)


def test_internvl_videos_in_a_batch_are_found(bench):
    family = bench("internvl")
    live = wrap_encoder(family.whole, family.processor)
    found, _ = live.unbatch(chat(family, *CHATS["a video before a picture"])[1])
    assert [(image.video, len(image.tiles)) for image in found] == [(True, 3), (False, 7), (False, 9)]


def test_video_settings_come_from_the_right_file(tmp_path):
    """The files are written here in rising precedence."""
    assert video_settings(tmp_path) == {}
    for file, settings in (
        ("preprocessor_config.json", {"max_pixels": 1}),
        ("video_preprocessor_config.json", {"max_pixels": 2}),
        ("processor_config.json", {"video_processor": {"max_pixels": 3}}),
    ):
        (tmp_path / file).write_text(json.dumps(settings))
        assert video_settings(tmp_path) == settings.get("video_processor", settings)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_equals_single_images(bench, name):
    """Different shapes and budgets, and a video beside pictures if the family takes videos."""
    encoder = bench(name).encoder
    prepared = [encoder.preprocess(picture(size, i)) for i, size in enumerate(SIZES)]
    if name in checkpoints.VIDEO:
        prepared.insert(1, encoder.preprocess_video([picture((48, 32), i) for i in range(4)]))
    together = encoder.encode_images(prepared)
    budgets = [7, Budget(keep_ratio=0.2), Budget(auto=True, max_tokens=9)][: len(prepared)]
    samples = [encoder.visual_tokens(image, None) for image in together]
    kept = compress_images(create("fsr"), together, samples, budgets)
    for image, one, budget, prepare in zip(together, kept, budgets, prepared, strict=True):
        alone = encoder.encode_images([prepare])[0]
        assert torch.allclose(alone.features, image.features, atol=1e-5)
        assert torch.allclose(alone.saliency, image.saliency, atol=1e-6)
        single = compress_images(create("fsr"), [alone], [encoder.visual_tokens(alone, None)], [budget])[0]
        assert single.index.tolist() == one.index.tolist()
        assert image.owned() is not None and image.features.untyped_storage().nbytes() == image.features.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_a_video_are_known_before_it_is_prepared(bench, name):
    encoder = bench(name).encoder
    if name not in checkpoints.VIDEO:
        with pytest.raises(ValueError, match="takes pictures only"):
            encoder.video_tokens(4, (48, 32))
        return
    for count in (1, 2, 5, 8):
        for size in ((48, 32), (32, 48), (9, 7), (300, 11)):
            video = encoder.preprocess_video([picture(size)] * count)
            assert encoder.video_tokens(count, size) == sum(encoder.token_counts(video))


@pytest.mark.parametrize("name", checkpoints.VIDEO)
def test_video_budgets_add_up(bench, name):
    family = bench(name)
    frames = [picture((48, 32), i) for i in range(6)]
    for budget in (1, 2, 7, 24):
        for spread in ("even", "free"):
            images, kept, _ = shown(family, (), [frames], budget=budget, spread=spread)
            assert len(kept[0]) == budget
            assert kept[0].index.tolist() == sorted(set(kept[0].index.tolist()))
            if spread == "even":
                counts = images[0].groups[kept[0].index].bincount(minlength=int(images[0].groups.max()) + 1)
                assert counts.max() - counts.min() <= 1


def test_frames_are_chosen_evenly():
    """The papers' 32 frames of a longer video, with the first and the last one."""
    picked = evenly(range(100))
    assert len(picked) == 32 and (picked[0], picked[-1]) == (0, 99)
    steps = {after - before for before, after in pairwise(picked)}
    assert steps == {3, 4}
    assert evenly("abc") == ["a", "b", "c"] and evenly(range(9), 1) == [0]
    for frames, count, message in (((), 3, "has no frames"), ((1,), 0, "at least one frame")):
        with pytest.raises(ValueError, match=message):
            evenly(frames, count)


def test_tiles_layout_has_five_views(bench):
    """The papers' 2880 tokens: five views with all patches, each with a fifth of the budget."""
    family = bench("llava_next")
    encoder = load_encoder(str(family.folder), clip="none", family_options={"layout": "tiles"})
    assert encoder.info.visual_tokens == 5 * 64
    image = encoder.encode_images([encoder.preprocess(picture((70, 30)))])[0]
    sample = encoder.visual_tokens(image, None)
    kept = compress_images(create("fsr"), [image], [sample], [40])[0]
    assert image.groups[kept.index].bincount().tolist() == [8] * 5
    laid = encoder.assemble(image, kept)
    assert torch.equal(laid.index, kept.index)  # no newlines
    # 70 x 30 in 64 x 64 pixels: scaled by 64 / 70, centred with 32 - 15 * 64 / 70 pixels above.
    left, top, right, bottom = image.tiles[1].crop
    assert (left, right, bottom) == pytest.approx((0, 35, 15))
    assert top == pytest.approx(15 - 35)


@pytest.mark.parametrize(("where", "newlines"), [("end", 1), ("frame", 3), ("row", 9)])
def test_video_newlines_follow_the_option(bench, where, newlines):
    family = bench("llava_onevision")
    encoder = load_encoder(str(family.folder), family_options={"video_newlines": where})
    image = encoder.encode_images([encoder.preprocess_video([picture((24, 24), i) for i in range(3)])])[0]
    sample = encoder.visual_tokens(image, None)
    for budget, expected in ((ALL, newlines), (1, 1)):
        laid = encoder.assemble(image, create("fsr").compress(sample, budget))
        assert int((laid.index < 0).sum()) == expected
    assert torch.equal(laid.features[-1], encoder.newline)


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_picture_or_video_is_named(bench, name):
    encoder = bench(name).encoder
    with pytest.raises(ValueError, match="image: expected a PIL image"):
        encoder.preprocess("scene.png")
    frames = [picture((48, 32))]
    wrong = {"video: has no frames": ([], 2.0)}
    if name in checkpoints.VIDEO:
        wrong |= {"differ in size": ([*frames, picture((32, 48))], 2.0), "fps = 0": (frames, 0.0)}
    else:
        wrong = {"takes pictures only": (frames, 2.0)}
    for message, (given, fps) in wrong.items():
        with pytest.raises(ValueError, match=message):
            encoder.preprocess_video(given, fps)
    with pytest.raises(ValueError, match=r"^family_options: .* has no option 'nonsense'"):
        load_encoder(str(bench(name).folder), clip="none", family_options={"nonsense": 1})
    for option in FAMILIES[name].options:
        with pytest.raises(ValueError, match=f"^family_options.{option}: 'magic' is unknown; use "):
            load_encoder(str(bench(name).folder), clip="none", family_options={option: "magic"})
