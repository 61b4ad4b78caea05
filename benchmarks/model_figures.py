"""The figures of docs/models.md, computed from the published configurations: memory of each half, and savings.

    python -m benchmarks.model_figures            # prints the tables
    python -m benchmarks.model_figures --write    # puts them into docs/models.md, between their markers

Weights are counted on the library's classes, built on the meta device. Nothing is downloaded: the shapes are below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from fsr_core.savings import Geometry, savings

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
TEXT_TOKENS = 112  # template and question; with them the formula gives the paper's 9.04 TFLOP for 576 tokens

VICUNA_7B = {"vocab_size": 32064}  # the library's defaults of Llama are those of the 7B
VICUNA_13B = VICUNA_7B | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
VICUNA_13B |= {"num_attention_heads": 40, "num_key_value_heads": 40}
MISTRAL_7B = {"vocab_size": 32064}
QWEN2_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
QWEN2_7B |= {"num_attention_heads": 28, "num_key_value_heads": 4}
QWEN3_8B = {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
QWEN3_8B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
CLIP_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_LARGE |= {"image_size": 336, "patch_size": 14}
CLIP_TEXT = 123_060_480 + 768 * 768 + 768 * 1024  # CLIP-L's text tower and both projections
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
SIGLIP |= {"image_size": 384, "patch_size": 14, "vision_use_head": False}


@dataclass(frozen=True)
class Model:
    """A checkpoint, with its visual tokens and budgets (the paper's, or our own)."""

    name: str
    config: Callable[[], Any]
    tokens: int
    budgets: tuple[int, ...]


def _llava(text: dict[str, int]) -> Any:
    return tf.LlavaConfig(
        text_config={"model_type": "llama"} | text, vision_config={"model_type": "clip_vision_model"} | CLIP_LARGE
    )


def _next(text: dict[str, int], kind: str = "llama") -> Any:
    return tf.LlavaNextConfig(
        text_config={"model_type": kind} | text, vision_config={"model_type": "clip_vision_model"} | CLIP_LARGE
    )


def _onevision() -> Any:
    return tf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", "vocab_size": 152000} | QWEN2_7B,
        vision_config={"model_type": "siglip_vision_model"} | SIGLIP,
    )


def _qwen2() -> Any:
    return tf.Qwen2VLConfig(text_config={"vocab_size": 152064} | QWEN2_7B)  # its tower is the class's default


def _qwen25() -> Any:
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return tf.Qwen2_5_VLConfig(text_config={"vocab_size": 152064} | QWEN2_7B, vision_config=vision)


def _qwen3() -> Any:
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
    return tf.Qwen3VLConfig(text_config=QWEN3_8B, vision_config=vision | {"deepstack_visual_indexes": [8, 16, 24]})


def _intern() -> Any:
    # The tower's default is the published InternViT-300M.
    return tf.InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": 151674} | QWEN2_7B, tie_word_embeddings=False
    )


def _smol() -> Any:
    text = {"model_type": "llama", "vocab_size": 49280, "hidden_size": 960, "intermediate_size": 2560}
    text |= {"num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision |= {"image_size": 512, "patch_size": 16}
    return tf.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4, tie_word_embeddings=False)


MODELS = (
    Model("llava-hf/llava-1.5-7b-hf", lambda: _llava(VICUNA_7B), 576, (192, 128, 64)),
    Model("llava-hf/llava-1.5-13b-hf", lambda: _llava(VICUNA_13B), 576, (192, 128, 64)),
    Model("llava-hf/llava-v1.6-vicuna-7b-hf", lambda: _next(VICUNA_7B), 2880, (960, 640, 320)),
    Model("llava-hf/llava-v1.6-vicuna-13b-hf", lambda: _next(VICUNA_13B), 2880, (960, 640, 320)),
    Model("llava-hf/llava-v1.6-mistral-7b-hf", lambda: _next(MISTRAL_7B, "mistral"), 2880, (960, 640, 320)),
    Model("llava-hf/llava-onevision-qwen2-7b-ov-hf", _onevision, 32 * 196, (2509, 1254)),
    Model("LLaVA-Video-7B-Qwen2, converted", _onevision, 32 * 196, (2509, 1254)),
    Model("Qwen/Qwen2-VL-7B-Instruct", _qwen2, 37 * 37, (548, 274, 137)),
    Model("Qwen/Qwen2.5-VL-7B-Instruct", _qwen25, 37 * 37, (548, 274, 137)),
    Model("Qwen/Qwen3-VL-8B-Instruct", _qwen3, 32 * 32, (410, 205, 102)),
    Model("OpenGVLab/InternVL3-8B-hf", _intern, 13 * 256, (1331, 666, 333)),
    Model("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", _smol, 17 * 64, (435, 218, 109)),
)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def halves(model: Model) -> tuple[int, int]:
    """Parameters of the encoder half, without blocks that are not read, and of the decoder half."""
    with torch.device("meta"):
        whole: Any = tf.AutoModelForImageTextToText.from_config(model.config())
    core, head = whole.model, whole.lm_head
    decoder = _count(whole.get_decoder()) + _count(head)
    if hasattr(core, "visual"):
        return _count(core.visual), decoder
    if hasattr(core, "connector"):
        return _count(core.vision_model) + _count(core.connector), decoder
    encoder = core.vision_tower.encoder
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    layer = whole.config.vision_feature_layer
    read = layer if layer >= 0 else len(layers) + 1 + layer
    tower = _count(core.vision_tower) - sum(_count(layer) for layer in layers[read:])
    text_side = CLIP_TEXT if whole.config.vision_config.model_type == "clip_vision_model" else 0
    return tower + _count(core.multi_modal_projector) + text_side, decoder


def tables() -> str:
    """Both tables in Markdown."""
    memory = ["| checkpoint | encoder half, GB | decoder half, GB | KV cache a token |", "| --- | --: | --: | --: |"]
    saved = ["| checkpoint | visual tokens | KV cache, MiB | prefill, TFLOP | features sent, MiB |"]
    saved.append("| --- | --: | --: | --: | --: |")
    for model in MODELS:
        encoder, decoder = halves(model)
        config = model.config()
        geometry = Geometry.from_config(config.text_config, dtype_bytes=2)
        deep = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        token = geometry.cost_model().kv_bytes_per_token
        memory.append(f"| {model.name} | {2 * encoder / 1e9:.2f} | {2 * decoder / 1e9:.1f} | {token / 1024:.0f} KiB |")
        for budget in model.budgets:
            one = savings(
                geometry,
                text_tokens=TEXT_TOKENS,
                visual_before=model.tokens,
                visual_after=budget,
                wire_dtype="bf16",
                deepstack_layers=deep,
            )
            cache = f"{token * model.tokens / 2**20:.0f} -> {token * budget / 2**20:.0f}"
            flops = f"{one.prefill_flops_before / 1e12:.2f} -> {one.prefill_flops_after / 1e12:.2f}"
            wire = f"{one.wire_bytes_before / 2**20:.1f} -> {one.wire_bytes_after / 2**20:.1f}"
            saved.append(f"| {model.name} | {model.tokens} -> {budget} | {cache} | {flops} | {wire} |")
    return "\n".join([*memory, "", *saved]) + "\n"


def written(page: str, figures: str) -> str:
    """The page with the tables between its markers."""
    before, _, rest = page.partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- end of figures -->\n")
    return f"{before}<!-- figures -->\n{figures}<!-- end of figures -->\n{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/models.md")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(), tables()))
    else:
        print(tables(), end="")


if __name__ == "__main__":
    main()
