"""Every family against the library's own model: pixels, layout, logits and greedy ids, with all tokens and with few."""

import json
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import checkpoints
import layout
from benches import ALL, QUESTION, SIZES, chat, continue_greedily, picture, shown

from fsr_core import Budget, create
from fsr_core.backbones import FAMILIES, load_decoder, load_encoder, weights
from fsr_core.backbones.spread import compress_images
from fsr_core.backbones.video import evenly

NAMES = tuple(checkpoints.FAMILIES)
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
    "a video": (("user", [picture((48, 32), i) for i in range(3)], QUESTION),),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("talk", CHATS)
def test_all_tokens_equal_the_class_itself(bench, name, talk):
    if talk == "a video" and name not in checkpoints.VIDEO:
        pytest.skip("takes pictures only")
    own = bench(name)
    messages, inputs, pictures, videos = chat(own, *CHATS[talk])
    _, _, laid = shown(own, pictures, videos)
    prompt = own.decoder.prompt(messages, laid)
    assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        want = own.whole(**inputs).logits[0]
        got = own.decoder.model(**prompt.model_inputs()).logits[0]
    assert torch.allclose(got, want, atol=1e-4)
    ids = own.whole.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert continue_greedily(own.decoder, prompt, 8) == ids


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


@pytest.mark.parametrize("name", checkpoints.VIDEO)
def test_frames_are_prepared_as_the_family_does(bench, name):
    own = bench(name)
    _, inputs, _, videos = chat(own, ("user", [picture((48, 32), i) for i in range(3)], QUESTION))
    ours = own.encoder.preprocess_video(videos[0])
    assert torch.allclose(ours.inputs["pixel_values"].reshape(-1), inputs["pixel_values_videos"].reshape(-1), atol=1e-5)
    assert len(ours.frame_seconds) == (3 if name == "llava_onevision" else 2)


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


@pytest.mark.parametrize("name", NAMES)
def test_each_half_loads_only_its_half(bench, name):
    own, core = bench(name), bench(name).whole.model
    vision = core.visual if hasattr(core, "visual") else core.vision_tower

    def names(module):
        return {n for n, _ in module.named_parameters()}

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(own.decoder.model) == count(core.language_model) + count(own.whole.lm_head)
    tower = own.encoder.visual if hasattr(own.encoder, "visual") else own.encoder.vision.tower
    assert names(tower) <= names(vision)
    for module in (tower, own.decoder.model):
        assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert own.encoder.fingerprint == own.decoder.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_checked_without_taking_memory(bench, name):
    own = bench(name)
    checked = load_encoder(str(own.folder), clip=own.clip, device="meta")
    tower = checked.visual if hasattr(checked, "visual") else checked.vision.tower
    assert all(t.is_meta for t in (*tower.parameters(), *tower.buffers()))


@pytest.mark.parametrize(
    ("half", "lost", "says"),
    [
        ("encoder", ("vision", "visual"), "holds no vision tower"),
        ("encoder", ("vision_tower.encoder.layers.0.mlp.fc1.w", "visual.blocks.0.mlp."), "vision tower lacks"),
        (
            "decoder",
            ("language_model", "lm_head", "model.layers", "model.norm", "embed_tokens"),
            "holds no language model",
        ),
        ("decoder", ("layers.1.mlp",), "language model lacks"),
        ("decoder", (), "has no image token 399"),
        ("encoder", None, "is of type 'blip-2', which is not supported; supported: llava, llava_next"),
        ("decoder", None, "is of type 'blip-2', which is not supported; supported: llava, llava_next"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_that_do_not_do_are_named(bench, name, half, lost, says, tmp_path):
    own = bench(name)
    shutil.copytree(own.folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    if lost is None:
        config = {"model_type": "blip-2"}
    elif not lost:
        config |= {"image_token_id": 399, "image_token_index": 399}
    else:
        stored = load_file(own.folder / "model.safetensors")
        left = {n: t for n, t in stored.items() if not any(part in n for part in lost)}
        assert len(left) < len(stored)
        save_file(left, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"model.*{says}"):
        load_encoder(str(tmp_path), clip=own.clip, device="meta") if half == "encoder" else load_decoder(str(tmp_path))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_sharded_checkpoints_open_only_the_files_they_need(bench, name, tmp_path, monkeypatch):
    own = bench(name)
    own.whole.save_pretrained(tmp_path, max_shard_size="60KB")
    for file in own.folder.iterdir():
        if not file.name.startswith("model") and file.name != "config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    shards = list(tmp_path.glob("model-*.safetensors"))
    opened, real = set(), weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda path, **kw: opened.add(path.name) or real(path, **kw))
    encoder = load_encoder(str(tmp_path), clip=own.clip)
    assert 0 < len(opened) < len(shards)
    load_decoder(str(tmp_path))
    assert len(opened) == len(shards)
    prepared = encoder.preprocess(picture(SIZES[0]))
    features = encoder.encode_images([prepared])[0].features
    assert torch.equal(features, own.encoder.encode_images([prepared])[0].features)
    shards[0].unlink()
    with pytest.raises(ValueError, match="lacks model-"):
        load_decoder(str(tmp_path))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava", "llava_onevision"])
def test_saliency_is_the_library_s_own_attention(bench, name):
    """Against attention weights of the eager tower, a frame by itself, merged and put back in raster order."""
    own = bench(name)
    prepared = own.encoder.preprocess(picture(SIZES[0]))
    got = own.encoder.encode_images([prepared])[0].saliency
    if name.startswith("llava"):
        tower = own.whole.model.vision_tower
        tower.set_attn_implementation("eager")
        with torch.inference_mode():
            pixels = prepared.inputs["pixel_values"].view(-1, *prepared.inputs["pixel_values"].shape[-3:])
            maps = tower(pixels, output_attentions=True).attentions
        tower.set_attn_implementation("sdpa")
        if name == "llava":
            assert torch.allclose(got, maps[-2].mean(1)[0, 0, 1:], atol=1e-6)
        else:
            side = int(maps[-1].shape[-1])
            assert torch.allclose(got[:side], maps[-1].mean((1, 2))[0], atol=1e-6)
        return
    visual, seen = own.whole.model.visual, {}
    block = max(visual.config.fullatt_block_indexes) if name == "qwen2_5_vl" else -1
    visual.set_attn_implementation("eager")
    module = sys.modules[type(visual).__module__]
    real = module.eager_attention_forward

    def spy(attention, *args, **kwargs):
        out, weights = real(attention, *args, **kwargs)
        seen[id(attention)] = weights
        return out, weights

    module.eager_attention_forward = spy
    try:
        with torch.inference_mode():
            visual(prepared.inputs["pixel_values"], grid_thw=prepared.inputs["grid"][None])
    finally:
        module.eager_attention_forward = real
        visual.set_attn_implementation("sdpa")
    want = seen[id(visual.blocks[block].attn)].mean((1, 2))[0].view(-1, 4).mean(1)
    if name == "qwen2_5_vl":
        _, h, w = prepared.inputs["grid"].tolist()
        raster = torch.empty_like(want)
        windows = [
            row * (w // 2) + column
            for top in range(0, h // 2, 2)
            for left in range(0, w // 2, 2)
            for row in range(top, min(top + 2, h // 2))
            for column in range(left, min(left + 2, w // 2))
        ]
        raster[torch.tensor(windows)] = want
        want = raster
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", checkpoints.MULTI_AXIS)
@pytest.mark.parametrize("spot", [(0, 0), (1, 6), (4, 2), (5, 8), (3, 5)])
def test_saliency_moves_where_the_bright_patch_is(bench, name, spot):
    """Rows and columns of windows are odd here, so a token left in window order would be found elsewhere."""
    encoder, (row, column) = bench(name).encoder, spot
    dark, bright = Image.new("RGB", (72, 48)), Image.new("RGB", (72, 48))
    bright.paste((255, 255, 255), (column * 8, row * 8, column * 8 + 8, row * 8 + 8))
    without, with_patch = encoder.encode_images([encoder.preprocess(p) for p in (dark, bright)])
    assert without.grid == (1, 6, 9)
    assert int((with_patch.saliency - without.saliency).abs().argmax()) == row * 9 + column


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


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_relevance_is_the_text_towers_own_cosine(bench, name, tmp_path):
    """Each patch in the joint space of the named checkpoint, against its classes' own modules."""
    own, tower = bench(name), bench(name).whole.model.vision_tower
    make = {"llava_next": checkpoints.clip, "llava_onevision": checkpoints.siglip}[name]
    kind = {"llava_next": "CLIPModel", "llava_onevision": "SiglipModel"}[name]
    encoder = load_encoder(str(own.folder), clip=make(tower, tmp_path))
    assert load_encoder(str(own.folder), clip=str(tmp_path), device="meta").text is not None
    joint = getattr(transformers, kind).from_pretrained(tmp_path, dtype=torch.float32).eval()
    prepared = encoder.preprocess(picture((40, 40)))
    image = encoder.encode_images([prepared])[0]
    short, long = encoder.encode_instructions(["what is the star?", "star " * 200])
    words = encoder.text.tokenizer
    with torch.inference_mode():
        states = tower(prepared.inputs["pixel_values"][:1], output_hidden_states=True).hidden_states
        if name == "llava_next":
            patches = joint.visual_projection(joint.vision_model.post_layernorm(states[-2][:, 1:]))[0]
            ids = words("what is the star?", return_tensors="pt")
            said = joint.text_projection(joint.text_model(**ids).pooler_output)
        else:
            vision = joint.vision_model
            patches = vision.head(vision.post_layernorm(states[-1]).transpose(0, 1))
            ids = words("what is the star?")["input_ids"] + [words.eos_token_id]
            padded = torch.tensor([ids + [words.pad_token_id] * (16 - len(ids))])
            said = joint.text_model(input_ids=padded).pooler_output
    want = torch.nn.functional.cosine_similarity(patches, said)
    base = encoder.visual_tokens(image, short).relevance[: len(want)]
    assert torch.allclose(base, want, atol=1e-5)
    assert len(short) == 1 < len(long)
    with pytest.raises(ValueError, match=r"clip: .* is a"):
        load_encoder(str(own.folder), clip=str(bench("qwen3_vl").folder))


@pytest.mark.parametrize("name", checkpoints.MULTI_AXIS)
def test_relevance_from_the_instructions_words(bench, name):
    own = bench(name)
    encoder = load_encoder(str(own.folder), options={"relevance": "instruction"})
    image = encoder.encode_images([encoder.preprocess(picture(SIZES[0]))])[0]
    text = encoder.encode_instructions([QUESTION])[0]
    table = own.whole.get_input_embeddings().weight
    mean = table[torch.tensor(own.processor.tokenizer(QUESTION)["input_ids"])].mean(0)
    want = torch.nn.functional.cosine_similarity(image.features, mean[None])
    assert torch.allclose(encoder.visual_tokens(image, text).relevance, want, atol=1e-5)
