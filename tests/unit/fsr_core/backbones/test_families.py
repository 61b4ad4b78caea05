"""Every family against the library's own model: pixels, layout, logits and greedy ids, with all tokens and with few."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers
from packaging.version import Version

from fsr_core import Budget, create
from fsr_core.backbones import FAMILIES, ImagePart, Message, TextPart, load_encoder
from fsr_core.backbones.vision.frames import evenly
from fsr_core.backbones.vision.image_processors import video_settings
from fsr_core.spread import compress_images
from helpers import checkpoints, layout
from helpers.benches import ALL, QUESTION, SIZES, chat, continue_greedily, picture, prefill, shown

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


def prompt_as_the_class(own, messages, laid, inputs):
    """The prompt, after its ids and logits were held to the library's own."""
    prompt = own.decoder.prompt(messages, laid)
    batch = prefill(own.decoder, prompt)
    assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        want = own.whole(**inputs).logits[0]
        got = own.decoder.model(**batch.inputs({"inputs_embeds": batch.embeds})).logits[0]
    assert torch.allclose(got, want, atol=1e-4)
    return prompt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("talk", CHATS)
def test_all_tokens_equal_the_class_itself(bench, name, talk):
    if "video" in talk and name not in checkpoints.VIDEO:
        pytest.skip("takes pictures only")
    own = bench(name)
    messages, inputs, pictures, videos = chat(own, *CHATS[talk])
    _, _, laid = shown(own, pictures, videos)
    prompt = prompt_as_the_class(own, messages, laid, inputs)
    ids = own.whole.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert continue_greedily(own.decoder, prompt, 8) == ids


@pytest.mark.parametrize("name", checkpoints.VIDEO)
@pytest.mark.parametrize("fps", [4.0, 1.5])
def test_steps_of_a_video_that_are_no_whole_seconds(bench, name, fps, monkeypatch):
    """Times and positions in time are the class's own."""
    if name == "qwen2_5_vl" and Version(transformers.__version__) < Version("5.18"):
        pytest.skip("the class cuts the step to whole seconds")
    own = bench(name)
    monkeypatch.setattr(own.processor.video_processor, "seconds", fps)
    messages, inputs, _, videos = chat(own, ("user", [picture((48, 32), i) for i in range(6)], QUESTION))
    _, _, laid = shown(own, (), videos, fps=fps)
    prompt_as_the_class(own, messages, laid, inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", ["even", "free"])
@pytest.mark.parametrize("budget", [5, 13])
def test_few_tokens_lie_where_they_lay(bench, name, spread, budget):
    """Embeddings, positions, newlines and order, against the library's own cut down by an independent reading."""
    own = bench(name)
    for size in SIZES:
        messages, inputs, pictures, _ = chat(own, ("user", picture(size), QUESTION))
        images, kept, laid = shown(own, pictures, budget=budget, spread=spread)
        # Merged anchors differ from their source rows on purpose; layout is what this test is about.
        source, rows = laid[0].features.clone(), laid[0].index >= 0
        source[rows] = images[0].features[laid[0].index[rows]]
        prompt = own.decoder.prompt(messages, [replace(laid[0], features=source)])
        embeds, positions, mask, layers = layout.expected(own, inputs, kept[0].index)
        assert len(kept[0]) == budget
        assert torch.allclose(prompt.inputs_embeds, embeds, atol=1e-5)
        assert prompt.visual_mask.tolist() == mask.tolist()
        assert positions is None or torch.equal(prompt.position_ids, positions)
        ids = layout.greedy(own.whole, embeds, positions, mask, layers, 6, own.decoder.eos_token_ids)
        assert continue_greedily(own.decoder, prompt, 6) == ids


@pytest.mark.parametrize("name", checkpoints.VIDEO)
@pytest.mark.parametrize("spread", ["even", "free"])
def test_few_tokens_of_a_video_lie_where_they_lay(bench, name, spread):
    own = bench(name)
    frames = [picture((48, 32), i) for i in range(4)]
    messages, inputs, _, videos = chat(own, ("user", frames, QUESTION))
    images, kept, laid = shown(own, (), videos, budget=9, spread=spread)
    source, rows = laid[0].features.clone(), laid[0].index >= 0
    source[rows] = images[0].features[laid[0].index[rows]]
    prompt = own.decoder.prompt(messages, [replace(laid[0], features=source)])
    embeds, positions, mask, layers = layout.expected(own, inputs, kept[0].index, video=True)
    assert torch.allclose(prompt.inputs_embeds, embeds, atol=1e-5)
    assert positions is None or torch.equal(prompt.position_ids, positions)
    ids = layout.greedy(own.whole, embeds, positions, mask, layers, 5, own.decoder.eos_token_ids)
    assert continue_greedily(own.decoder, prompt, 5) == ids


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_the_processors_own(bench, name):
    own = bench(name)
    for size in SIZES:
        theirs = own.processor.image_processor(images=[picture(size)], return_tensors="pt")["pixel_values"]
        ours = own.encoder.preprocess(picture(size)).inputs["pixel_values"]
        assert torch.equal(ours.reshape(-1), theirs.reshape(-1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (90, 1), (1, 90), (1000, 7)])
def test_tiny_and_very_oblong_pictures(bench, name, size):
    """A view of which unpadding leaves nothing is none."""
    own = bench(name)
    for budget, spread in ((ALL, "even"), (5, "even"), (5, "free")):
        images, kept, laid = shown(own, [picture(size)], budget=budget, spread=spread)
        n = len(images[0].features)
        assert len(kept[0]) == min(budget, n)
        assert images[0].tiles[-1].stop == n and all(tile.rows and tile.cols for tile in images[0].tiles)
        assert len(laid[0].features) == len(kept[0]) + int((laid[0].index < 0).sum())
        own.decoder.prompt([Message("user", (ImagePart(0), TextPart(QUESTION)))], laid)


@pytest.mark.parametrize("name", checkpoints.VIDEO)
def test_frames_are_prepared_as_the_family_does(bench, name):
    own = bench(name)
    _, inputs, _, videos = chat(own, ("user", [picture((48, 32), i) for i in range(3)], QUESTION))
    ours = own.encoder.preprocess_video(videos[0])
    assert torch.allclose(ours.inputs["pixel_values"].reshape(-1), inputs["pixel_values_videos"].reshape(-1), atol=1e-5)
    assert len(ours.frame_seconds) == (3 if name == "llava_onevision" else 2)


def test_a_videos_settings_are_read_where_the_library_reads_them(tmp_path):
    """From the last file written here: each goes before those written earlier."""
    assert video_settings(tmp_path) == {}
    for file, told in (
        ("preprocessor_config.json", {"max_pixels": 1}),
        ("video_preprocessor_config.json", {"max_pixels": 2}),
        ("processor_config.json", {"video_processor": {"max_pixels": 3}}),
    ):
        (tmp_path / file).write_text(json.dumps(told))
        assert video_settings(tmp_path) == told.get("video_processor", told)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_gives_what_each_gives_alone(bench, name):
    """Shapes, budgets and, where the family takes them, a video beside pictures."""
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
        own = compress_images(create("fsr"), [alone], [encoder.visual_tokens(alone, None)], [budget])[0]
        assert own.index.tolist() == one.index.tolist()
        assert image.owned() is not None and image.features.untyped_storage().nbytes() == image.features.nbytes


@pytest.mark.parametrize("name", checkpoints.VIDEO)
def test_video_budgets_add_up(bench, name):
    own = bench(name)
    frames = [picture((48, 32), i) for i in range(6)]
    for budget in (1, 2, 7, 24):
        for spread in ("even", "free"):
            images, kept, _ = shown(own, (), [frames], budget=budget, spread=spread)
            assert len(kept[0]) == budget
            assert kept[0].index.tolist() == sorted(set(kept[0].index.tolist()))
            if spread == "even":
                counts = images[0].groups[kept[0].index].bincount(minlength=int(images[0].groups.max()) + 1)
                assert counts.max() - counts.min() <= 1


def test_frames_are_thinned_out_evenly():
    """The papers' 32 frames of a longer video, the first and the last among them."""
    picked = evenly(range(100))
    assert len(picked) == 32 and (picked[0], picked[-1]) == (0, 99)
    steps = {after - before for before, after in pairwise(picked)}
    assert steps == {3, 4}
    assert evenly("abc") == ["a", "b", "c"] and evenly(range(9), 1) == [0]
    for frames, count, says in (((), 3, "has no frames"), ((1,), 0, "at least one frame")):
        with pytest.raises(ValueError, match=says):
            evenly(frames, count)


def test_the_papers_2880_tokens(bench):
    """Five views of all patches each, and a budget of which each gets a fifth."""
    own = bench("llava_next")
    encoder = load_encoder(str(own.folder), clip="none", options={"layout": "tiles"})
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
def test_newlines_of_a_video(bench, where, newlines):
    own = bench("llava_onevision")
    encoder = load_encoder(str(own.folder), options={"video_newlines": where})
    image = encoder.encode_images([encoder.preprocess_video([picture((24, 24), i) for i in range(3)])])[0]
    sample = encoder.visual_tokens(image, None)
    for budget, expected in ((ALL, newlines), (1, 1)):
        laid = encoder.assemble(image, create("fsr").compress(sample, budget))
        assert int((laid.index < 0).sum()) == expected
    assert torch.equal(laid.features[-1], encoder.newline)


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_pictures_and_videos_are_named(bench, name):
    encoder = bench(name).encoder
    with pytest.raises(ValueError, match="image: expected a PIL image"):
        encoder.preprocess("scene.png")
    frames = [picture((48, 32))]
    wrong = {"video: has no frames": ([], 2.0)}
    if name in checkpoints.VIDEO:
        wrong |= {"differ in size": ([*frames, picture((32, 48))], 2.0), "fps = 0": (frames, 0.0)}
    else:
        wrong = {"takes pictures only": (frames, 2.0)}
    for says, (given, fps) in wrong.items():
        with pytest.raises(ValueError, match=says):
            encoder.preprocess_video(given, fps)
    with pytest.raises(ValueError, match="has no option 'nonsense'"):
        load_encoder(str(bench(name).folder), clip="none", options={"nonsense": 1})
    for option in FAMILIES[name].options:
        with pytest.raises(ValueError, match=f"options.{option}: 'magic' is unknown; use "):
            load_encoder(str(bench(name).folder), clip="none", options={option: "magic"})
