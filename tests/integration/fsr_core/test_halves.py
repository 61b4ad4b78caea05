"""Each half of every family's checkpoint: what it loads, and how it refuses bad checkpoints."""

import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fsr_core.backbones import load_decoder, load_encoder
from fsr_core.backbones.checkpoints import weights
from fsr_core.backbones.prompts import Message, TextPart
from helpers import checkpoints
from helpers.benches import SIZES, picture

NAMES = tuple(checkpoints.FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_half_loads_only_its_weights(bench, name):
    family = bench(name)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(family.decoder.model) == count(family.whole.get_decoder()) + count(family.whole.lm_head)
    tower = family.encoder.visual if hasattr(family.encoder, "visual") else family.encoder.vision.tower
    for module in (tower, family.decoder.model):
        assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert family.encoder.fingerprint == family.decoder.fingerprint


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(checkpoints.MULTI_AXIS)))
def test_saved_language_model_loads_as_causal_lm(bench, name, tmp_path):
    """As engines outside this process get it."""
    decoder, ids = bench(name).decoder, torch.tensor([[7, 9, 11]])
    decoder.model.save_pretrained(tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(alone(ids).logits, decoder.model(input_ids=ids).logits)


@pytest.mark.parametrize("name", NAMES)
def test_half_reads_only_its_tensors(bench, name, monkeypatch):
    family, read, safe_open = bench(name), [], weights.safe_open

    @contextmanager
    def watched(path, **options):
        with safe_open(path, **options) as file:
            yield SimpleNamespace(
                keys=file.keys, get_tensor=lambda stored: read.append((path, stored)) or file.get_tensor(stored)
            )

    def parts():
        return {weights.part_of(stored)[0] for path, stored in read if path.parent == family.folder}

    monkeypatch.setattr(weights, "safe_open", watched)
    load_encoder(str(family.folder), clip=family.clip)
    assert "vision" in parts() <= {"vision", "projector", "newline"}
    read.clear()
    load_decoder(str(family.folder))
    assert "language" in parts() <= {"language", "head"}


@pytest.mark.parametrize("name", NAMES)
def test_meta_device_takes_no_memory(bench, name):
    family = bench(name)
    encoder = load_encoder(str(family.folder), clip=family.clip, device="meta")
    tower = encoder.visual if hasattr(encoder, "visual") else encoder.vision.tower
    assert all(t.is_meta for t in (*tower.parameters(), *tower.buffers()))


@pytest.mark.parametrize(
    ("half", "lost", "message"),
    [
        ("encoder", ("vision", "visual"), "holds no vision tower"),
        (
            "encoder",
            ("encoder.layers.0.mlp.fc1.w", "encoder.layer.0.mlp.fc1.w", "visual.blocks.0.mlp."),
            "vision tower lacks",
        ),
        (
            "decoder",
            ("language_model", "text_model", "lm_head", "model.layers", "model.norm", "embed_tokens"),
            "holds no language model",
        ),
        ("decoder", ("layers.1.mlp",), "language model lacks"),
        ("decoder", (), "has no image token 399"),
        ("encoder", "vision_config", "vision tower does not fit its config.json"),
        ("decoder", "text_config", "language model does not fit its config.json"),
        ("encoder", None, "is of type 'blip-2', which is not supported; supported: .*llava, llava_next"),
        ("decoder", None, "is of type 'blip-2', which is not supported; supported: .*llava, llava_next"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_checkpoint_is_named(bench, name, half, lost, message, tmp_path):
    family = bench(name)
    shutil.copytree(family.folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    if lost is None:
        config = {"model_type": "blip-2"}
    elif isinstance(lost, str):
        config[lost]["mlp_ratio" if "mlp_ratio" in config[lost] else "intermediate_size"] += 8
    elif not lost:
        config |= {"image_token_id": 399, "image_token_index": 399}
    else:
        stored = load_file(family.folder / "model.safetensors")
        remaining = {n: t for n, t in stored.items() if not any(part in n for part in lost)}
        assert len(remaining) < len(stored)
        save_file(remaining, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"model.*{message}"):
        load_encoder(str(tmp_path), clip=family.clip, device="meta") if half == "encoder" else load_decoder(
            str(tmp_path)
        )


def test_unknown_video_token_is_ignored(bench, tmp_path):
    family = bench("llava_onevision")
    shutil.copytree(family.folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"video_token_id": 100_000, "video_token_index": 100_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder = load_decoder(str(tmp_path))
    assert len(decoder.chat.visual_ids) == len(decoder.chat.visual_tokens) == 1
    assert len(decoder.prompt([Message("user", (TextPart("Is it None?"),))], []).token_ids) > 3


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_sharded_checkpoint_opens_needed_files_only(bench, name, tmp_path, monkeypatch):
    family = bench(name)
    family.whole.save_pretrained(tmp_path, max_shard_size="60KB")
    for file in family.folder.iterdir():
        if not file.name.startswith("model") and file.name != "config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    shards = list(tmp_path.glob("model-*.safetensors"))
    opened, real = set(), weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda path, **kw: opened.add(path.name) or real(path, **kw))
    encoder = load_encoder(str(tmp_path), clip=family.clip)
    assert 0 < len(opened) < len(shards)
    load_decoder(str(tmp_path))
    assert len(opened) == len(shards)
    prepared = encoder.preprocess(picture(SIZES[0]))
    features = encoder.encode_images([prepared])[0].features
    assert torch.equal(features, family.encoder.encode_images([prepared])[0].features)
    shards[0].unlink()
    with pytest.raises(ValueError, match="lacks model-"):
        load_decoder(str(tmp_path))
