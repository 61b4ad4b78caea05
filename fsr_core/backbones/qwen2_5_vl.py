"""Qwen2.5-VL: windows of attention, tokens merged 2 x 2, rotary positions with three axes; kept tokens keep theirs."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)
from transformers.vision_utils import get_vision_window_index

from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.vision.qwen_encoder import QwenEncoder

__all__ = ["Qwen25Decoder", "Qwen25Encoder"]


class Qwen25Encoder(QwenEncoder):
    """Option `relevance`: "none" (as in the paper) or "instruction"."""

    tower_class = Qwen2_5_VisionTransformerPretrainedModel

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

    def time_positions(self, steps: int, seconds: float) -> Tensor:
        # Before transformers 5.18 the library's class cuts `seconds` to a whole number, so steps of 0.5 s would all
        # stand at 0.
        return (torch.arange(steps) * (self.config.tokens_per_second * seconds)).long()


class Qwen25Decoder(HalfDecoder):
    """The language model. Text after a picture starts past the picture's whole extent, whichever tokens were kept."""

    text_model = Qwen2_5_VLTextModel
    multi_axis = True
