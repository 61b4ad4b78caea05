"""The two halves of a LLaVA against the class's own model, on random weights in the hub's folder format."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel, LlavaForConditionalGeneration

from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart, load_decoder, load_encoder
from fsr_core.tiny.model import new_models, save
from fsr_core.tiny.scenes import draw, make_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llava")
    save(*new_models(seed=3), path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(str(folder))


@pytest.fixture(scope="module")
def decoder(folder):
    return load_decoder(str(folder))


@pytest.fixture(scope="module")
def whole(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def chat(*turns):
    """(role, text or image number, ...) -> messages of ours and the same for the class's own template."""
    ours = tuple(
        Message(role, tuple(ImagePart(p) if isinstance(p, int) else TextPart(p) for p in parts))
        for role, *parts in turns
    )
    theirs = [
        {
            "role": role,
            "content": [{"type": "image"} if isinstance(p, int) else {"type": "text", "text": p} for p in parts],
        }
        for role, *parts in turns
    ]
    return ours, theirs


CHATS = {
    "one image": (("user", 0, "What colour is the star?"),),
    "two images": (("user", 0, 1, "Is there a red star?"),),
    "later image": (("user", 0, "Is it red?"), ("assistant", "yes"), ("user", 1, "And this?")),
    "text only": (("user", "Hello?"),),
}


@pytest.mark.parametrize("name", CHATS)
def test_all_tokens_equal_the_class_itself(name, folder, encoder, decoder, whole):
    ours, theirs = chat(*CHATS[name])
    pictures = [draw(make_scene(seed)) for seed in range(sum(isinstance(p, int) for _, *t in CHATS[name] for p in t))]
    seen = encoder.encode_images([encoder.preprocess(p) for p in pictures])
    prompt = decoder.prompt(ours, [KeptImage(s.features) for s in seen])
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(theirs, add_generation_prompt=True)
    inputs = processor(images=pictures or None, text=text, return_tensors="pt")
    assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        want = whole(**inputs).logits[0]
        got = decoder.model(inputs_embeds=prompt.inputs_embeds.unsqueeze(0)).logits[0]
    assert torch.allclose(got, want, atol=1e-4)
    options = {"max_new_tokens": 8, "do_sample": False}
    ids = whole.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert (
        decoder.model.generate(inputs_embeds=prompt.inputs_embeds.unsqueeze(0), **options)[0].tolist() == ids.tolist()
    )


def test_pixels_are_the_processors_own(folder, encoder):
    picture = Image.effect_noise((201, 97), 80)
    own = AutoProcessor.from_pretrained(folder).image_processor(picture.convert("RGB"), return_tensors="pt")
    prepared = encoder.preprocess(picture)
    assert torch.equal(prepared.inputs["pixel_values"], own["pixel_values"][0])
    assert prepared.tiles[0].crop == (52.0, 0.0, 149.0, 97.0)


def test_saliency_is_the_cls_row_of_the_second_last_block(folder, encoder):
    prepared = encoder.preprocess(draw(make_scene(7)))
    clip = CLIPModel.from_pretrained(folder / "clip", attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        full = clip.vision_model(prepared.inputs["pixel_values"][None], output_attentions=True)
    want = full.attentions[-2].mean(1)[0, 0, 1:]
    assert torch.allclose(encoder.encode_images([prepared])[0].saliency, want, atol=1e-6)


def test_relevance_is_clips_own_cosine(folder, encoder):
    prepared, text = encoder.preprocess(draw(make_scene(7))), "What colour is the star?"
    image = encoder.encode_images([prepared])[0]
    short, long = encoder.encode_instructions([text, "red star " * 60])
    clip = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)
    with torch.inference_mode():
        ids = encoder.clip.tokenizer(text, return_tensors="pt")
        said = torch.nn.functional.normalize(clip.text_projection(clip.text_model(**ids).pooler_output), dim=-1)
        states = clip.vision_model(prepared.inputs["pixel_values"][None], output_hidden_states=True).hidden_states
        patches = clip.visual_projection(clip.vision_model.post_layernorm(states[-2][:, 1:]))
    want = torch.nn.functional.normalize(patches, dim=-1)[0] @ said[0]
    assert torch.allclose(encoder.visual_tokens(image, short).relevance, want, atol=1e-5)
    assert (len(short), len(long)) == (1, 2)


def test_a_batch_equals_one_by_one(encoder):
    prepared = [encoder.preprocess(draw(make_scene(seed))) for seed in range(3)]
    for alone, together in zip(prepared, encoder.encode_images(prepared), strict=True):
        assert torch.allclose(encoder.encode_images([alone])[0].features, together.features, atol=1e-5)
    texts = ["What shape is red?", "How many red shapes are there?"]
    for text, together in zip(texts, encoder.encode_instructions(texts), strict=True):
        assert torch.allclose(encoder.encode_instructions([text])[0], together, atol=1e-6)


def test_each_half_loads_only_its_half(encoder, decoder, whole):
    def count(*modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    language = count(whole.model.language_model)
    vision = count(whole.model.vision_tower)
    assert count(decoder.model) == language
    assert count(encoder.tower) < vision  # the last block is not read
    assert not any(p.is_meta for m in (encoder.tower, encoder.projector, decoder.model) for p in m.parameters())
    assert not any(b.is_meta for m in (encoder.tower, decoder.model) for b in m.buffers())
    assert encoder.fingerprint == decoder.fingerprint


def test_fingerprint_tells_checkpoints_apart(tmp_path, encoder):
    save(*new_models(seed=4), tmp_path)
    assert load_encoder(str(tmp_path)).fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("messages", "images", "says"),
    [
        ((), (), "messages: is empty"),
        ((Message("robot", (TextPart("hi"),)),), (), "role"),
        ((Message("user", (ImagePart(0),)),), (), "image 0 is not among"),
        ((Message("user", (TextPart("a <image> b"),)),), (), "stands for an image"),
        ((Message("user", (TextPart("hi"),)),), (KeptImage(torch.ones(2, 160)),), "no message refers"),
        ((Message("user", (ImagePart(0),)),), (KeptImage(torch.ones(2, 7)),), "expected \\[K, 160\\]"),
        ((Message("user", (TextPart("star " * 2000),)),), (), "takes 2"),
    ],
)
def test_bad_conversations_are_named(decoder, messages, images, says):
    with pytest.raises(ValueError, match=says):
        decoder.prompt(messages, images)


@pytest.mark.parametrize("model", ["nowhere", "./nowhere", "/nowhere/at/all"])
def test_a_missing_checkpoint_is_named(model):
    with pytest.raises(ValueError, match="model"):
        load_decoder(model)
