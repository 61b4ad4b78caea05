"""Qwen3-VL: no windows, features of several depths (DeepStack), videos written frame by frame with their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel

from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.prompts import KeptImage
from fsr_core.backbones.vision.qwen_encoder import QwenEncoder
from fsr_core.backbones.vision.qwen_pixels import fit

__all__ = ["Qwen3Decoder", "Qwen3Encoder"]


class Qwen3Encoder(QwenEncoder):
    """Option `relevance`: "none" or "instruction". Saliency is read in the last block, as all have full attention."""

    video_pixels = (128 * 32 * 32, 768 * 32 * 32)

    @classmethod
    def build(cls, config: Any) -> Any:
        return Qwen3VLVisionModel(config)

    def salient_block(self) -> int:
        return int(self.config.depth) - 1

    def video_size(self, frames: int, height: int, width: int, factor: int) -> tuple[int, int]:
        pair = int(self.config.temporal_patch_size)
        steps = max(pair, round(frames / pair) * pair)
        return fit(height, width, factor, self._least, self._most, steps)

    def time_positions(self, steps: int, seconds: float) -> Tensor:
        # Time is written out in the text between frames; the axis tells the frames apart until they are laid out.
        return torch.arange(steps)

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return by_frame(image)


def by_frame(image: KeptImage) -> Sequence[KeptImage]:
    """A video as one block a frame, in order, empty ones too: what follows a frame stands where it stood before
    compression. A picture is one block."""
    if not image.video or image.positions is None or image.grid is None:
        return (image,)
    found = []
    for step in range(image.grid[0]):
        rows = image.positions[:, 0] == step
        positions = image.positions[rows].clone()
        positions[:, 0] = 0
        deepstack = None if image.deepstack is None else image.deepstack[:, rows.to(image.deepstack.device)]
        features = image.features[rows.to(image.features.device)]
        found.append(
            replace(image, features=features, positions=positions, deepstack=deepstack, grid=(1, *image.grid[1:]))
        )
    return found


class Qwen3Decoder(HalfDecoder):
    """The language model. A video is laid out frame by frame, each after its time in seconds and at temporal position
    0; the time of a frame stays even where nothing of the frame was kept."""

    text_model = Qwen3VLTextModel
    multi_axis = True

    def placeholder(self, image: KeptImage) -> str | None:
        if not image.video or image.grid is None:
            return None
        if len(image.frame_seconds) != image.grid[0]:
            raise ValueError(
                f"images: a video of {image.grid[0]} steps has {len(image.frame_seconds)} times; send one a step"
            )
        if image.positions is not None and int(image.positions[:, 0].max()) >= image.grid[0]:
            raise ValueError(f"images: positions of a video reach beyond its {image.grid[0]} steps")
        token = self.chat.visual_tokens[1]
        block = f"<|vision_start|>{token}<|vision_end|>"
        return "".join(f"<{second:.1f} seconds>{block}" for second in image.frame_seconds)

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return by_frame(image)
