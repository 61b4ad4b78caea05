"""The two halves of a LLaVA against the library's model, on random weights in the hub's folder format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPModel, LlavaForConditionalGeneration, LlavaImageProcessorPil

from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart, load_decoder, load_encoder
from fsr_core.backbones.vision.image_processors import image_processor, visible
from fsr_core.backbones.vision.saliency import cls_attention
from fsr_core.tiny.model import CHAT_TEMPLATE, new_models, save
from fsr_core.tiny.scenes import draw, make_scene
from helpers.benches import pixels_of


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
    """(role, text or image number, ...) -> our messages, and the same for the library's template."""
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
def test_all_tokens_equal_the_library(name, folder, encoder, decoder, whole):
    ours, theirs = chat(*CHATS[name])
    pictures = [draw(make_scene(seed)) for seed in range(sum(isinstance(p, int) for _, *t in CHATS[name] for p in t))]
    images = encoder.encode_images([encoder.preprocess(p) for p in pictures])
    prompt = decoder.prompt(ours, [KeptImage(features=image.features) for image in images])
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


def test_pixels_equal_the_processor(folder, encoder):
    picture = Image.effect_noise((201, 97), 80)
    theirs = AutoProcessor.from_pretrained(folder).image_processor(picture.convert("RGB"), return_tensors="pt")
    prepared = encoder.preprocess(picture)
    assert torch.equal(pixels_of(prepared), theirs["pixel_values"][0])


@pytest.mark.parametrize(
    ("size", "left", "right"),
    [
        # 144 / 97 of 201 is 298 (truncated); 77 of them are cut off on the left.
        ((201, 97), 77 * 201 / 298, 221 * 201 / 298),
        # 191 columns, 23 cut off: 18 pixels further left than the middle of the picture itself.
        ((4001, 3001), 23 * 4001 / 191, 167 * 4001 / 191),
    ],
)
def test_crop_equals_the_processor(encoder, size, left, right):
    picture = Image.new("L", size)
    picture.paste(255, (0, 0, round(left + 0.75 * (right - left) / 144), size[1]))
    prepared = encoder.preprocess(picture)
    assert prepared.tiles[0].crop == pytest.approx((left, 0, right, size[1]))
    columns = pixels_of(prepared)[0].mean(0)
    assert columns[0] > columns[3]  # the white edge ends within the first column of the crop


def test_padded_crop_reaches_beyond_the_picture(tmp_path):
    processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 144}, crop_size=dict.fromkeys(("height", "width"), 144)
    )
    processor.save_pretrained(tmp_path)
    loaded = image_processor(tmp_path, "CLIPImageProcessor")
    assert isinstance(loaded, LlavaImageProcessorPil)
    assert visible(loaded, (200, 100)) == (0.0, -50.0, 200.0, 150.0)


def test_cached_features_own_their_memory(encoder):
    """A cache counts the memory that it really holds."""
    for image in encoder.encode_images([encoder.preprocess(draw(make_scene(seed))) for seed in range(3)]):
        tensors = (image.features, image.saliency, image.joint)
        assert sum(t.untyped_storage().nbytes() for t in tensors) == image.nbytes == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_saliency_is_computed_in_fp32(folder, dtype):
    """Near 100 the steps of half precision are 0.06, so many logits would tie."""
    half = load_encoder(str(folder), dtype=dtype)
    block = half.vision.tower.encoder.layers[-1]
    block.self_attn.q_proj.weight.mul_(50)
    hidden = torch.randn(1, 145, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = cls_attention(block, hidden)[0]
    normed = block.layer_norm1(hidden)
    q = block.self_attn.q_proj(normed[:, :1]).double().view(4, 1, 32)
    k = block.self_attn.k_proj(normed).double().view(145, 4, 32).transpose(0, 1)
    want = (q @ k.transpose(1, 2) * 32**-0.5).softmax(-1).mean(0)[0, 1:]
    assert torch.allclose(got.double(), want, rtol=1e-4, atol=1e-7)


def test_stop_ids_come_from_the_generation_config(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert load_decoder(str(tmp_path)).eos_token_ids == (2, 7)


def test_template_with_bos_gets_no_second_one(folder, tmp_path, decoder):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("<s>" + CHAT_TEMPLATE)
    messages = [Message("user", (TextPart("Hello?"),))]
    assert torch.equal(load_decoder(str(tmp_path)).prompt(messages).token_ids, decoder.prompt(messages).token_ids)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("generation_config.json", b"["),
        ("tokenizer.json", b"{}"),
    ],
)
def test_damaged_file_is_named(folder, tmp_path, file, content):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"^model: .*(damaged|cannot be read)"):
        load_decoder(str(tmp_path))


@pytest.mark.parametrize("load", [load_encoder, load_decoder])
def test_missing_device_is_named(load):
    with pytest.raises(ValueError, match="device: 'nonsense' cannot be used here"):
        load("fsr-tiny", device="nonsense")


def test_truncated_weights_file_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_decoder(str(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_clip_in_pytorch_format_is_loaded(folder, tmp_path, encoder, zipped):
    shutil.copytree(folder / "clip", tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    weights.unlink()
    loaded = load_encoder(str(folder), clip=str(tmp_path))
    question = ["Is there a red star?"]
    assert torch.equal(loaded.encode_instructions(question)[0], encoder.encode_instructions(question)[0])


def test_pickle_with_code_is_refused(folder, tmp_path):
    shutil.copytree(folder / "clip", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"text_projection.weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="more than tensors"):
        load_encoder(str(folder), clip=str(tmp_path))


def test_saliency_equals_cls_row_of_second_last_block(folder, encoder):
    prepared = encoder.preprocess(draw(make_scene(7)))
    clip = CLIPModel.from_pretrained(folder / "clip", attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        full = clip.vision_model(pixels_of(prepared)[None], output_attentions=True)
    want = full.attentions[-2].mean(1)[0, 0, 1:]
    assert torch.allclose(encoder.encode_images([prepared])[0].saliency, want, atol=1e-6)


def test_relevance_equals_clip_cosine(folder, encoder):
    prepared, text = encoder.preprocess(draw(make_scene(7))), "What colour is the star?"
    image = encoder.encode_images([prepared])[0]
    short, long = encoder.encode_instructions([text, "red star " * 60])
    clip = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)
    with torch.inference_mode():
        ids = encoder.text.tokenizer(text, return_tensors="pt")
        embedding = torch.nn.functional.normalize(clip.text_projection(clip.text_model(**ids).pooler_output), dim=-1)
        states = clip.vision_model(pixels_of(prepared)[None], output_hidden_states=True).hidden_states
        patches = clip.visual_projection(clip.vision_model.post_layernorm(states[-2][:, 1:]))
    want = torch.nn.functional.normalize(patches, dim=-1)[0] @ embedding[0]
    assert torch.allclose(encoder.visual_tokens(image, short).relevance, want, atol=1e-5)
    assert (len(short), len(long)) == (1, 2)


def test_batch_equals_single_images(encoder):
    prepared = [encoder.preprocess(draw(make_scene(seed))) for seed in range(3)]
    for alone, together in zip(prepared, encoder.encode_images(prepared), strict=True):
        assert torch.allclose(encoder.encode_images([alone])[0].features, together.features, atol=1e-5)
    texts = ["What shape is red?", "How many red shapes are there?"]
    for text, together in zip(texts, encoder.encode_instructions(texts), strict=True):
        assert torch.allclose(encoder.encode_instructions([text])[0], together, atol=1e-6)


def test_half_loads_only_its_weights(encoder, decoder, whole):
    def count(*modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    language = count(whole.model.language_model)
    vision = count(whole.model.vision_tower)
    assert count(decoder.model) == language
    assert count(encoder.vision.tower) < vision  # the last block is not read
    assert not any(
        p.is_meta for m in (encoder.vision.tower, encoder.vision.projector, decoder.model) for p in m.parameters()
    )
    assert not any(b.is_meta for m in (encoder.vision.tower, decoder.model) for b in m.buffers())
    assert encoder.fingerprint == decoder.fingerprint


def test_fingerprint_tells_checkpoints_apart(tmp_path, encoder):
    save(*new_models(seed=4), tmp_path)
    assert load_encoder(str(tmp_path)).fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        ((), (), "messages: is empty"),
        ((Message("robot", (TextPart("hi"),)),), (), "role"),
        ((Message("user", (ImagePart(0),)),), (), "image 0 is not among"),
        ((Message("user", (TextPart("a <image> b"),)),), (), "stands for an image"),
        ((Message("user", (TextPart("hi"),)),), (KeptImage(features=torch.ones(2, 160)),), "no message refers"),
        ((Message("user", (ImagePart(0),)),), (KeptImage(features=torch.ones(2, 7)),), "expected \\[K, 160\\]"),
        ((Message("user", (TextPart("star " * 2000),)),), (), "takes 2"),
    ],
)
def test_bad_conversation_is_named(decoder, messages, images, message):
    with pytest.raises(ValueError, match=message):
        decoder.prompt(messages, images)


@pytest.mark.parametrize(
    ("more", "step"),
    [(ImagePart(0), lambda half: (half.chat, "tokenise")), (TextPart("star " * 20), lambda half: (half, "embed"))],
)
def test_too_long_prompt_is_refused_before_layout(decoder, monkeypatch, more, step):
    image, room = KeptImage(features=torch.ones(16, 160)), decoder.info.context_length
    parts = (*[ImagePart(0)] * (room // 16 - 1), TextPart("Where?"))
    assert decoder.prompt([Message("user", parts)], [image]).visual_tokens == room - 16
    monkeypatch.setattr(*step(decoder), None)  # must not be called
    with pytest.raises(ValueError, match=f"messages: the .* tokens of the model's {room}"):
        decoder.prompt([Message("user", (*parts, more))], [image])


@pytest.mark.parametrize("model", ["nowhere", "./nowhere", "/nowhere/at/all"])
def test_missing_checkpoint_is_named(model):
    with pytest.raises(ValueError, match="model"):
        load_decoder(model)


def test_tokenizer_without_image_token_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_index": 100_000}))
    with pytest.raises(ValueError, match="has no image token 100000"):
        load_decoder(str(tmp_path))


@pytest.mark.parametrize(
    ("load", "without", "message"),
    [
        (load_encoder, "vision_tower", "holds no vision tower"),
        (load_encoder, "multi_modal_projector", "holds no projector"),
        (load_decoder, "language_model", "holds no language model|language model lacks"),
        (load_decoder, "layers.1.mlp", "language model lacks .*layers.1.mlp"),
    ],
)
def test_checkpoint_without_needed_half_is_named(folder, tmp_path, load, without, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    stored = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in stored.items() if without not in n}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))
