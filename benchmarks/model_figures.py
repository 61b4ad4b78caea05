"""The figures of docs/models.md and of `fsr plan`, computed from the published configurations.

    python -m benchmarks.model_figures            # prints the tables: memory of each half, and savings
    python -m benchmarks.model_figures --write    # puts them into docs/models.md, between their markers, and the
                                                  # figures of well-known models into fsr_core/planning/published.json

Weights are counted on the library's classes, built on the meta device. Nothing is downloaded: the shapes are below.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import transformers as tf

from fsr_core.planning.counting import count, read_config
from fsr_core.planning.figures import ModelFigures
from fsr_core.planning.models import PUBLISHED
from fsr_core.savings import savings
from fsr_core.tiny import WEIGHTS

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
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}
SIGLIP |= {"image_size": 384, "patch_size": 14, "vision_use_head": False}


@dataclass(frozen=True)
class Model:
    """A checkpoint and its budgets (the paper's, or our own)."""

    name: str
    config: Callable[[], Any]
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
    Model("llava-hf/llava-1.5-7b-hf", lambda: _llava(VICUNA_7B), (192, 128, 64)),
    Model("llava-hf/llava-1.5-13b-hf", lambda: _llava(VICUNA_13B), (192, 128, 64)),
    Model("llava-hf/llava-v1.6-vicuna-7b-hf", lambda: _next(VICUNA_7B), (960, 640, 320)),
    Model("llava-hf/llava-v1.6-vicuna-13b-hf", lambda: _next(VICUNA_13B), (960, 640, 320)),
    Model("llava-hf/llava-v1.6-mistral-7b-hf", lambda: _next(MISTRAL_7B, "mistral"), (960, 640, 320)),
    Model("llava-hf/llava-onevision-qwen2-7b-ov-hf", _onevision, (2509, 1254)),
    Model("LLaVA-Video-7B-Qwen2, converted", _onevision, (2509, 1254)),
    Model("Qwen/Qwen2-VL-7B-Instruct", _qwen2, (548, 274, 137)),
    Model("Qwen/Qwen2.5-VL-7B-Instruct", _qwen25, (548, 274, 137)),
    Model("Qwen/Qwen3-VL-8B-Instruct", _qwen3, (410, 205, 102)),
    Model("OpenGVLab/InternVL3-8B-hf", _intern, (1331, 666, 333)),
    Model("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", _smol, (435, 218, 109)),
)


@cache
def figures_of(model: Model) -> ModelFigures:
    return count(model.name, model.config())


def tables() -> str:
    """Both tables in Markdown."""
    memory = ["| checkpoint | encoder half, GB | decoder half, GB | KV cache a token |", "| --- | --: | --: | --: |"]
    saved = ["| checkpoint | visual tokens | KV cache, MiB | prefill, TFLOP | features sent, MiB |"]
    saved.append("| --- | --: | --: | --: | --: |")
    for model in MODELS:
        figures = figures_of(model)
        token, halves = figures.geometry.cost_model().kv_bytes_per_token, (figures.encoder_bytes, figures.decoder_bytes)
        memory.append(f"| {model.name} | {halves[0] / 1e9:.2f} | {halves[1] / 1e9:.1f} | {token / 1024:.0f} KiB |")
        for budget in model.budgets:
            one = savings(
                figures.geometry,
                text_tokens=TEXT_TOKENS,
                visual_before=figures.visual_tokens,
                visual_after=budget,
                wire_dtype="bf16",
                deepstack_layers=figures.deepstack_layers,
            )
            cache = f"{token * figures.visual_tokens / 2**20:.0f} -> {token * budget / 2**20:.0f}"
            flops = f"{one.prefill_flops_before / 1e12:.2f} -> {one.prefill_flops_after / 1e12:.2f}"
            wire = f"{one.wire_bytes_before / 2**20:.1f} -> {one.wire_bytes_after / 2**20:.1f}"
            saved.append(f"| {model.name} | {figures.visual_tokens} -> {budget} | {cache} | {flops} | {wire} |")
    return "\n".join([*memory, "", *saved]) + "\n"


def published() -> str:
    """The figures that are built in, as JSON: those of the tables under hub ids, and those of the embedded model."""
    rows = [figures_of(model) for model in MODELS if "/" in model.name]
    rows.append(count("fsr-tiny", read_config(str(WEIGHTS))))
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def written(page: str, figures: str) -> str:
    """The page with the tables between its markers."""
    before, _, rest = page.partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- end of figures -->\n")
    return f"{before}<!-- figures -->\n{figures}<!-- end of figures -->\n{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page and the built-in figures")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(), tables()))
        PUBLISHED.write_text(published())
    else:
        print(tables(), end="")


if __name__ == "__main__":
    main()
