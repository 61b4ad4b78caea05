"""Writes a Qwen3-VL of a few hundred MB with random weights: its answers mean nothing, its costs are real.

    python -m benchmarks.random_qwen3_vl runs/qwen3-vl-115m

The language model has the shape of SmolLM2-135M without its large vocabulary. A picture of 768 x 768 gives 576 visual
tokens. The vision tower is small, so that the language model decides the time of a request.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fsr_core.tiny.model import language_tokenizer

SIDE = 768  # of the largest picture, in pixels
_PARTS = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = """
{%- for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}
<|vision_start|>{{ '<|video_pad|>' if part.type == 'video' else '<|image_pad|>' }}<|vision_end|>{% endif %}{% endfor %}
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write(folder: Path) -> int:
    """Saves the checkpoint in the hub's format; returns its number of weights."""
    torch.manual_seed(0)
    start, picture, video, end, _, eos = _PARTS
    words = PreTrainedTokenizerFast(
        tokenizer_object=language_tokenizer().backend_tokenizer,
        eos_token=eos,
        pad_token="<pad>",
        extra_special_tokens={
            "image_token": picture,
            "video_token": video,
            "vision_start_token": start,
            "vision_end_token": end,
            "turn_token": _PARTS[4],
        },
    )
    ids = {name: words.convert_tokens_to_ids(name) for name in _PARTS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10]},
            "eos_token_id": ids[eos],
            "bos_token_id": None,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_heads": 4,
            "out_hidden_size": 576,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids[picture],
        video_token_id=ids[video],
        vision_start_token_id=ids[start],
        vision_end_token_id=ids[end],
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"shortest_edge": 64 * 64, "longest_edge": SIDE * SIDE}
    Qwen2VLImageProcessorPil(patch_size=16, size=size).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    options = parser.parse_args()
    print(f"{options.folder}: {write(options.folder) / 1e6:.0f} million weights")


if __name__ == "__main__":
    main()
