from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from fsr.decoder.engines.vllm.checkpoint import export, refuse_multi_axis
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


@pytest.mark.parametrize(("config", "fits"), [(LlamaConfig(), True), (Qwen2_5_VLTextConfig(), False)])
def test_multi_axis_positions_are_refused_with_a_remedy(config, fits):
    if not fits:
        config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    model = SimpleNamespace(model=SimpleNamespace(config=config), info=SimpleNamespace(family="qwen2_5_vl"))
    if fits:
        refuse_multi_axis(model)
        return
    with pytest.raises(ValueError, match=r"M-RoPE.*qwen2_5_vl.*--engine transformers"):
        refuse_multi_axis(model)
