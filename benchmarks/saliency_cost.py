"""What saliency adds to a vision tower's forward pass, compared with returning attention maps.

    python -m benchmarks.saliency_cost [--threads 1] [--rounds 5]

Towers have the published shapes, random weights, and four of their blocks. Saliency is read once per pass, whatever the
depth, so its share is taken of four blocks scaled to the full depth. Variants take turns within a round. Medians of CPU
time over all rounds but the first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from fsr_core.backbones.vision.saliency import Recorder, attention_received, cls_attention, self_attention_received

BLOCKS = 4
Run = Callable[[], Any]


def patch_tower(kind: Any, config: Any, read: Callable[[Any, torch.Tensor], torch.Tensor]) -> tuple[Any, Run, Run, Run]:
    """A CLIP or SigLIP tower; a pass, a pass with saliency, and a pass that returns every attention map."""
    tower = kind(config).eval()
    block = tower.encoder.layers[-1]
    recorder, pixels = Recorder(block), torch.randn(1, 3, config.image_size, config.image_size)

    def reading() -> Any:
        with recorder.recording() as recorded:
            tower(pixels)
            return read(block, recorded.input)

    return tower, lambda: tower(pixels), reading, lambda: tower(pixels, output_attentions=True)


def qwen_tower(side: int) -> tuple[Any, Run, Run, Run]:
    """Qwen2.5-VL's tower on a square picture, with full attention in every block; see `patch_tower`."""
    config = Qwen2_5_VLVisionConfig(
        depth=BLOCKS,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=3584,
        fullatt_block_indexes=list(range(BLOCKS)),
    )
    config._attn_implementation = "sdpa"
    tower: Any = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    grid = torch.tensor([[1, side // 14, side // 14]])
    pixels = torch.randn(int(grid.prod()), 3 * 2 * 14 * 14)
    recorder, block = Recorder(tower.blocks[-1]), tower.blocks[-1]

    def reading() -> Any:
        with recorder.recording() as recorded:
            tower(pixels, grid_thw=grid)
            hidden = block.norm1(recorded.input)
            query, keys, _ = block.attn.qkv(hidden).view(len(hidden), 3, 16, 80).permute(1, 2, 0, 3).unbind(0)
            return attention_received(query, keys, 80**-0.5)

    return tower, lambda: tower(pixels, grid_thw=grid), reading, lambda: tower(pixels, grid_thw=grid)


def eagerly(tower: Any, run: Run) -> Run:
    """The same with eager attention; only that can return attention maps."""

    def eager() -> Any:
        tower.set_attn_implementation("eager")
        try:
            return run()
        finally:
            tower.set_attn_implementation("sdpa")

    return eager


def measure(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each. CPU time hardly depends on other load on the machine."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "image_size": 336}
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "image_size": 384}
    shared = {"num_hidden_layers": BLOCKS, "patch_size": 14}
    towers = {
        "CLIP-L/14, 336 px": (23, patch_tower(CLIPVisionModel, CLIPVisionConfig(**shared, **large), cls_attention)),
        "SigLIP so400m, 384 px": (
            26,
            patch_tower(
                SiglipVisionModel,
                SiglipVisionConfig(**shared, **so400m, vision_use_head=False),
                self_attention_received,
            ),
        ),
        "Qwen2.5-VL, 448 px": (32, qwen_tower(448)),
    }
    print("| tower | blocks | pass, ms a block | reading, ms | of a whole pass | every map, eager, to SDPA |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, (depth, (tower, plain, reading, maps)) in towers.items():
        seconds = measure({"plain": plain, "reading": reading, "maps": eagerly(tower, maps)}, options.rounds)
        extra = max(0.0, seconds["reading"] - seconds["plain"])
        share = extra / (seconds["plain"] * depth / BLOCKS)
        block, eager = 1000 * seconds["plain"] / BLOCKS, seconds["maps"] / seconds["plain"]
        print(f"| {name} | {depth} | {block:.1f} | {1000 * extra:.1f} | {share:.1%} | {eager:.2f} |", flush=True)


if __name__ == "__main__":
    main()
