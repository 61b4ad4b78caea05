"""What the vLLM engine serves, decided from a configuration, without vLLM."""

from types import SimpleNamespace

import pytest
import transformers as tf

from fsr.decoder.engines.vllm.families import check_family, is_multi_axis, position_limit

KNOWN = ("LlamaForCausalLM", "Qwen2ForCausalLM", "FsrMultiAxisForCausalLM")
SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def text(kind, **fields):
    return SimpleNamespace(model_type=kind, rope_parameters=SECTIONS | fields, max_position_embeddings=2048)


@pytest.mark.parametrize(
    "config",
    [tf.LlamaConfig(), tf.Qwen2Config(), text("qwen2_vl_text"), text("qwen2_5_vl_text"), text("qwen3_vl_text")],
)
def test_a_family_that_fits_is_accepted(config):
    check_family("family", config, KNOWN)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (tf.MistralConfig(), "mistral, is none of vllm's"),
        (text("qwen3_5_text"), "M-RoPE.* of qwen3_5_text are not supported"),
        (text("qwen3_vl_text", rope_type="dynamic"), "rope_type 'dynamic' was not tried"),
    ],
)
def test_a_family_that_does_not_fit_is_refused_with_a_remedy(config, says):
    with pytest.raises(ValueError, match=rf"^engine: vllm cannot serve family: .*{says}.*; use --engine transformers$"):
        check_family("family", config, KNOWN)


def test_a_package_whose_plugin_vllm_has_not_loaded_is_named():
    check_family("family", tf.LlamaConfig(), KNOWN[:2])
    with pytest.raises(ValueError, match=r"plugin of this package; install fsr-gateway\[vllm\] again, .* VLLM_PLUGINS"):
        check_family("family", text("qwen3_vl_text"), KNOWN[:2])


def test_only_multi_axis_positions_have_a_limit_of_their_own():
    assert is_multi_axis(text("qwen2_5_vl_text")) and position_limit(text("qwen2_5_vl_text")) == 8192
    assert not is_multi_axis(tf.LlamaConfig()) and position_limit(tf.LlamaConfig()) is None
