"""The folder that vLLM gets, without vLLM."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from fsr.decoder.engines.vllm.checkpoint import export
from fsr_core.backbones import Message, TextPart, load_decoder

QUESTION = (Message("user", (TextPart("Where is the red star?"),)),)


def test_export_writes_the_language_model_once_and_keeps_prompts(tmp_path):
    model = load_decoder("fsr-tiny")
    before = model.prompt(QUESTION)
    with torch.inference_mode():
        expected = model.model(inputs_embeds=before.inputs_embeds[None]).logits
    folder = export(model, tmp_path / "engines")
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert torch.equal(alone(input_ids=before.token_ids[None]).logits, expected)
    assert torch.equal(model.prompt(QUESTION).inputs_embeds, before.inputs_embeds)
    remaining = sum(parameter.numel() for parameter in model.model.parameters())
    assert remaining < 2 * model.model.get_input_embeddings().weight.numel()
    written = (folder / "config.json").stat().st_mtime_ns
    assert export(load_decoder("fsr-tiny"), tmp_path / "engines") == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [folder.name]


@pytest.mark.parametrize(("name", "interleaved", "rows"), [("qwen2_5_vl", False, 1), ("qwen3_vl", True, 3)])
def test_export_of_multi_axis_positions_names_our_class(bench, tmp_path, name, interleaved, rows):
    """vLLM takes the order of the axes and the width of a row from the configuration."""
    model = load_decoder(str(bench(name).folder))
    before, tensors = model.prompt(QUESTION), dict(model.model.state_dict())
    folder = export(model, tmp_path)
    written = json.loads((folder / "config.json").read_text())
    assert written["architectures"] == ["FsrMultiAxisForCausalLM"]
    assert written["rope_parameters"]["mrope_interleaved"] is interleaved
    assert written["projection_dim"] == rows * written["hidden_size"]
    assert AutoConfig.from_pretrained(folder).model_type == f"{name}_text"
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == tensors.keys() and not written["tie_word_embeddings"]
    assert all(torch.equal(stored[key], tensors[key]) for key in stored)
    assert torch.equal(model.prompt(QUESTION).inputs_embeds, before.inputs_embeds)
    assert not list(model.model.model.layers)


def test_export_writes_a_tied_head_once(bench, tmp_path):
    model = load_decoder(str(bench("qwen3_vl").folder))
    model.model.lm_head.weight = model.model.get_input_embeddings().weight
    folder = export(model, tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
