"""Writes a LLaVA of any size with random weights for measurements: its answers mean nothing, its costs are real.

python -m benchmarks.random_llava runs/llava-135m                      # the shape of SmolLM2-135M, 576 visual tokens
python -m benchmarks.random_llava runs/small --layers 8 --hidden 512 --heads 8 --kv-heads 8 --mlp 1536 --side 168
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, CLIPModel, LlavaForConditionalGeneration, LlavaProcessor

from fsr_core.tiny.model import CHAT_TEMPLATE, clip_config, clip_tokenizer, language_tokenizer, llava_config


def write(folder: Path, side: int, patch: int, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int) -> int:
    """Saves LLaVA and CLIP in the hub's format; returns the number of visual tokens, (side / patch) squared."""
    torch.manual_seed(0)
    words, clip_words = language_tokenizer(), clip_tokenizer()
    clip = clip_config(clip_words)
    clip.vision_config.image_size, clip.vision_config.patch_size = side, patch
    config = llava_config(clip, words)
    text = config.text_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, hidden, mlp
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = heads, kv_heads, hidden // heads
    text.max_position_embeddings = 4096
    config.image_seq_length = (side // patch) ** 2
    size = {"height": side, "width": side}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        pixels,
        words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    CLIPModel(clip).save_pretrained(folder / "clip")
    clip_words.save_pretrained(folder / "clip")
    pixels.save_pretrained(folder / "clip")
    return int(config.image_seq_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    defaults = {"side": 336, "patch": 14, "layers": 30, "hidden": 576, "heads": 9, "kv-heads": 3, "mlp": 1536}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args()
    sizes = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in defaults}
    if min(sizes.values()) < 1 or options.side % options.patch or options.hidden % options.heads:
        parser.error("sizes: give positive ones, --patch dividing --side and --heads dividing --hidden")
    print(f"{options.folder}: {write(options.folder, **sizes)} visual tokens an image")


if __name__ == "__main__":
    main()
