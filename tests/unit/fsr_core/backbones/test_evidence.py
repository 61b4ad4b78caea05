"""Saliency and relevance of every family, against the library's own attention and text towers."""

import sys

import pytest
import torch
import transformers
from PIL import Image

from fsr_core.backbones import load_encoder
from helpers import checkpoints
from helpers.benches import QUESTION, SIZES, picture

LONG = "what is the colour of the star " * 40


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
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
        # The base view comes first.
        want = maps[-1].mean((1, 2))[0] if name == "llava_onevision" else maps[-2].mean(1)[0, 0, 1:]
        assert torch.allclose(got[: len(want)], want, atol=1e-6)
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
    short, long = encoder.encode_instructions(["what is the star?", LONG])
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
            ids = words(["what is the star?"], padding="max_length", return_tensors="pt")["input_ids"]
            said = joint.text_model(input_ids=ids).pooler_output
    want = torch.nn.functional.cosine_similarity(patches, said)
    base = encoder.visual_tokens(image, short).relevance[: len(want)]
    assert torch.allclose(base, want, atol=1e-5)
    # A long text goes through in chunks, each whole with its EOS; a patch counts by the mean of their cosines.
    pieces = words(LONG, add_special_tokens=False)["input_ids"]
    room = encoder.text.tower.config.max_position_embeddings
    with torch.inference_mode():
        if name == "llava_next":
            chunks = [[words.bos_token_id, *part, words.eos_token_id] for part in batched(pieces, room - 2)]
            said = [joint.text_projection(joint.text_model(input_ids=torch.tensor([c])).pooler_output) for c in chunks]
        else:
            chunks = [[*part, words.eos_token_id] for part in batched(pieces, room - 1)]
            filled = [chunk + [words.pad_token_id] * (room - len(chunk)) for chunk in chunks]
            said = [joint.text_model(input_ids=torch.tensor([c])).pooler_output for c in filled]
    cosines = torch.stack([torch.nn.functional.cosine_similarity(patches, one) for one in said])
    assert len(short) == 1 < len(long) == len(said)
    assert torch.allclose(encoder.visual_tokens(image, long).relevance[: len(want)], cosines.mean(0), atol=1e-5)
    with pytest.raises(ValueError, match=r"clip: .* is a"):
        load_encoder(str(own.folder), clip=str(bench("qwen3_vl").folder))


def batched(ids, size):
    return [ids[at : at + size] for at in range(0, len(ids), size)]


def test_siglip_reads_words_as_it_was_trained_on_them(bench, tmp_path):
    """Lower-cased and without punctuation, on SentencePiece: what SigLIP's own tokenizer class does, and no other."""
    own = bench("llava_onevision")
    encoder = load_encoder(str(own.folder), clip=checkpoints.siglip(own.whole.model.vision_tower, tmp_path))
    assert isinstance(encoder.text.tokenizer, transformers.SiglipTokenizer)
    said = encoder.encode_instructions(["what is the star", "What is,  the STAR?", "what is the colour"])
    assert torch.equal(said[0], said[1])
    assert not torch.allclose(said[0], said[2], atol=1e-3)
    with pytest.raises(ValueError, match="instruction: has no words"):
        encoder.encode_instructions(["?!"])


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
