"""Qwen2.5-VL: windows of attention, tokens merged 2 x 2, and rotary positions with three axes that kept tokens keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)
from transformers.vision_utils import get_vision_window_index

from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.vision.qwen_encoder import QwenEncoder
from fsr_core.backbones.vision.qwen_pixels import fit

__all__ = ["Qwen25Decoder", "Qwen25Encoder"]


class Qwen25Encoder(QwenEncoder):
    """Option `relevance`: "none" (the paper's) or "instruction"."""

    video_pixels = (128 * 28 * 28, 768 * 28 * 28)

    @classmethod
    def build(cls, config: Any) -> Any:
        return Qwen2_5_VisionTransformerPretrainedModel(config)

    def salient_block(self) -> int:
        return max(self.config.fullatt_block_indexes)

    def merged_order(self, grid: Tensor) -> Tensor | None:
        order, _ = get_vision_window_index(
            grid,
            spatial_merge_size=self.config.spatial_merge_size,
            window_size=self.config.window_size,
            patch_size=self.config.patch_size,
        )
        return order.to(grid.device)

    def video_size(self, frames: int, height: int, width: int, factor: int) -> tuple[int, int]:
        return fit(height, width, factor, self._least, self._most)

    def time_positions(self, steps: int, seconds: float) -> Tensor:
        # The library's class cuts `seconds` to whole ones before transformers 5.18. Steps of 0.5 would all be at 0.
        return (torch.arange(steps) * (self.config.tokens_per_second * seconds)).long()


class Qwen25Decoder(HalfDecoder):
    """The language model; text after a picture starts past its whole extent, whichever tokens were kept."""

    text_model = Qwen2_5_VLTextModel
    multi_axis = True
