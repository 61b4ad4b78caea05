"""Figures of models, against the library's own modules."""

import json
import sys

import pytest

from fsr_core.planning import models
from fsr_core.planning.models import model_figures, published
from helpers import checkpoints


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_figures_of_a_folder_are_those_of_its_model(bench, family):
    one = bench(family)
    figures = model_figures(str(one.folder))
    assert figures.family == one.whole.config.model_type
    assert figures.geometry.layers == one.decoder.info.geometry.layers
    assert figures.decoder_parameters == sum(p.numel() for p in one.decoder.model.parameters())
    whole = sum(p.numel() for p in one.whole.parameters())
    # Whole models of LLaVA also have the last block of their tower, which is not read, and a newline.
    least = 0.5 if family.startswith("llava") else 0.999
    assert least * whole < figures.decoder_parameters + figures.encoder_parameters <= whole
    assert figures.visual_tokens > 0 and figures.tower_flops > 0


def test_built_in_models_need_no_torch(monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert model_figures("LLaVA-hf/llava-1.5-7b-hf").visual_tokens == 576
    assert len(published()) > 10


def test_missing_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^model: torch is missing, .* pip install 'fsr-gateway\[core\]'"):
        model_figures(str(tmp_path))


def test_unknown_name_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^model: 'llava' is neither a folder nor a hub id .*llava-1.5-7b-hf"):
        model_figures("llava")
    with pytest.raises(ValueError, match=r"^model: .* has no config.json"):
        model_figures(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "cannot be read"),
        (json.dumps({"model_type": "unheard_of"}), "cannot be read"),
        (json.dumps({"model_type": "llama"}), "of type 'llama', which is not served; served: idefics3"),
        (
            json.dumps({"model_type": "llava", "text_config": {"model_type": "llama", "hidden_act": "none"}}),
            "incomplete or wrong",
        ),
    ],
)
def test_wrong_configuration_is_refused(tmp_path, config, says):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=f"^model: .*{says}"):
        model_figures(str(tmp_path))


def test_unreachable_hub_has_a_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at its import
    with pytest.raises(ValueError, match=r"^model: the configuration of nobody/nothing cannot be read .*give a folder"):
        model_figures("nobody/nothing")
