"""Saliency and relevance of every family, against the library's own attention and text towers."""

import sys

import pytest
import torch
import transformers
from PIL import Image

from fsr_core.backbones import FAMILIES, load_encoder
from helpers import checkpoints
from helpers.benches import QUESTION, SIZES, picture, pixels_of

LONG = "what is the colour of the star " * 40


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
def test_saliency_equals_library_attention(bench, name):
    """Against attention weights of the eager tower, of each frame by itself, merged and in raster order."""
    family = bench(name)
    prepared = family.encoder.preprocess(picture(SIZES[0]))
    got = family.encoder.encode_images([prepared])[0].saliency
    if name.startswith("llava"):
        tower = family.whole.model.vision_tower
        tower.set_attn_implementation("eager")
        with torch.inference_mode():
            pixels = pixels_of(prepared).view(-1, *pixels_of(prepared).shape[-3:])
            maps = tower(pixels, output_attentions=True).attentions
        tower.set_attn_implementation("sdpa")
        # The base view comes first.
        want = maps[-1].mean((1, 2))[0] if name == "llava_onevision" else maps[-2].mean(1)[0, 0, 1:]
        assert torch.allclose(got[: len(want)], want, atol=1e-6)
        return
    if name in checkpoints.SHUFFLED:
        tower = getattr(family.whole.model, "vision_model", None) or family.whole.model.vision_tower
        tower.set_attn_implementation("eager")
        with torch.inference_mode():
            last = tower(pixels_of(prepared), output_attentions=True).attentions[-1].mean(1)
        tower.set_attn_implementation("sdpa")
        received = last[:, 0, 1:] if name == "internvl" else last.mean(1)
        assert torch.allclose(got, merged(received), atol=1e-6)
        return
    visual, maps = family.whole.model.visual, {}
    block = max(visual.config.fullatt_block_indexes) if name == "qwen2_5_vl" else -1
    visual.set_attn_implementation("eager")
    module = sys.modules[type(visual).__module__]
    real = module.eager_attention_forward

    def spy(attention, *args, **kwargs):
        out, weights = real(attention, *args, **kwargs)
        maps[id(attention)] = weights
        return out, weights

    module.eager_attention_forward = spy
    try:
        with torch.inference_mode():
            visual(pixels_of(prepared), grid_thw=prepared.inputs["grid"][None])
    finally:
        module.eager_attention_forward = real
        visual.set_attn_implementation("sdpa")
    want = maps[id(visual.blocks[block].attn)].mean((1, 2))[0].view(-1, 4).mean(1)
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


def merged(values):
    """Means over squares of 2 x 2 of each view, in raster order."""
    side = int(values.shape[1] ** 0.5)
    rows = values.view(-1, side, side)
    squares = [rows[:, i : i + 2, j : j + 2].mean((1, 2)) for i in range(0, side, 2) for j in range(0, side, 2)]
    return torch.stack(squares, dim=1).flatten()


@pytest.mark.parametrize("name", checkpoints.MULTI_AXIS)
@pytest.mark.parametrize("spot", [(0, 0), (1, 6), (4, 2), (5, 8), (3, 5)])
def test_saliency_follows_the_bright_patch(bench, name, spot):
    """The numbers of rows and columns of windows are odd, so a token in window order would be at another place."""
    encoder, (row, column) = bench(name).encoder, spot
    dark, bright = Image.new("RGB", (72, 48)), Image.new("RGB", (72, 48))
    bright.paste((255, 255, 255), (column * 8, row * 8, column * 8 + 8, row * 8 + 8))
    without, with_patch = encoder.encode_images([encoder.preprocess(p) for p in (dark, bright)])
    assert without.grid == (1, 6, 9)
    assert int((with_patch.saliency - without.saliency).abs().argmax()) == row * 9 + column


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_relevance_equals_cosine_of_the_text_tower(bench, name, tmp_path):
    """Against the modules of the library's CLIP and SigLIP classes."""
    family, tower = bench(name), bench(name).whole.model.vision_tower
    make = {"llava_next": checkpoints.clip, "llava_onevision": checkpoints.siglip}[name]
    kind = {"llava_next": "CLIPModel", "llava_onevision": "SiglipModel"}[name]
    encoder = load_encoder(str(family.folder), clip=make(tower, tmp_path))
    assert load_encoder(str(family.folder), clip=str(tmp_path), device="meta").text is not None
    joint = getattr(transformers, kind).from_pretrained(tmp_path, dtype=torch.float32).eval()
    prepared = encoder.preprocess(picture((40, 40)))
    image = encoder.encode_images([prepared])[0]
    short, long = encoder.encode_instructions(["what is the star?", LONG])
    words = encoder.text.tokenizer
    with torch.inference_mode():
        states = tower(pixels_of(prepared)[:1], output_hidden_states=True).hidden_states
        if name == "llava_next":
            patches = joint.visual_projection(joint.vision_model.post_layernorm(states[-2][:, 1:]))[0]
            ids = words("what is the star?", return_tensors="pt")
            text = joint.text_projection(joint.text_model(**ids).pooler_output)
        else:
            vision = joint.vision_model
            patches = vision.head(vision.post_layernorm(states[-1]).transpose(0, 1))
            ids = words(["what is the star?"], padding="max_length", return_tensors="pt")["input_ids"]
            text = joint.text_model(input_ids=ids).pooler_output
    want = torch.nn.functional.cosine_similarity(patches, text)
    base = encoder.visual_tokens(image, short).relevance[: len(want)]
    assert torch.allclose(base, want, atol=1e-5)
    # A long text is cut into chunks, each with its own EOS; a patch's relevance is the mean of their cosines.
    pieces = words(LONG, add_special_tokens=False)["input_ids"]
    room = encoder.text.tower.config.max_position_embeddings
    with torch.inference_mode():
        if name == "llava_next":
            chunks = [[words.bos_token_id, *part, words.eos_token_id] for part in batched(pieces, room - 2)]
            texts = [joint.text_projection(joint.text_model(input_ids=torch.tensor([c])).pooler_output) for c in chunks]
        else:
            chunks = [[*part, words.eos_token_id] for part in batched(pieces, room - 1)]
            filled = [chunk + [words.pad_token_id] * (room - len(chunk)) for chunk in chunks]
            texts = [joint.text_model(input_ids=torch.tensor([c])).pooler_output for c in filled]
    cosines = torch.stack([torch.nn.functional.cosine_similarity(patches, text) for text in texts])
    assert len(short) == 1 < len(long) == len(texts)
    assert torch.allclose(encoder.visual_tokens(image, long).relevance[: len(want)], cosines.mean(0), atol=1e-5)
    with pytest.raises(ValueError, match=r"clip: .* is a"):
        load_encoder(str(family.folder), clip=str(bench("qwen3_vl").folder))


def batched(ids, size):
    return [ids[at : at + size] for at in range(0, len(ids), size)]


def test_siglip_ignores_case_and_punctuation(bench, tmp_path):
    """SigLIP's own tokenizer class lower-cases text and drops punctuation; no other class does."""
    family = bench("llava_onevision")
    encoder = load_encoder(str(family.folder), clip=checkpoints.siglip(family.whole.model.vision_tower, tmp_path))
    assert isinstance(encoder.text.tokenizer, transformers.SiglipTokenizer)
    embeddings = encoder.encode_instructions(["what is the star", "What is,  the STAR?", "what is the colour"])
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.allclose(embeddings[0], embeddings[2], atol=1e-3)
    with pytest.raises(ValueError, match="instruction: has no words"):
        encoder.encode_instructions(["?!"])


@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if "relevance" in family.options])
def test_relevance_from_instruction_equals_mean_embedding(bench, name):
    family = bench(name)
    encoder = load_encoder(str(family.folder), family_options={"relevance": "instruction"})
    image = encoder.encode_images([encoder.preprocess(picture(SIZES[0]))])[0]
    text = encoder.encode_instructions([QUESTION])[0]
    table = family.whole.get_input_embeddings().weight
    mean = table[torch.tensor(family.processor.tokenizer(QUESTION)["input_ids"])].mean(0)
    want = torch.nn.functional.cosine_similarity(image.features, mean[None])
    assert torch.allclose(encoder.visual_tokens(image, text).relevance, want, atol=1e-5)
