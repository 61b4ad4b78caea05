"""Qwen2-VL: full attention at the picture's own resolution, tokens merged 2 x 2, rotary positions with three axes."""

from __future__ import annotations

from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLTextModel

from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.vision.qwen_encoder import QwenEncoder

__all__ = ["Qwen2Decoder", "Qwen2Encoder"]


class Qwen2Encoder(QwenEncoder):
    """Option `relevance`: "none" or "instruction". Saliency is read in the last block; all have full attention."""

    tower_class = Qwen2VisionTransformerPretrainedModel


class Qwen2Decoder(HalfDecoder):
    """The language model. The steps of a video stand at temporal positions 0, 1, 2, ..., however long they take. Text
    after a picture starts past the picture's whole extent, whichever tokens were kept."""

    text_model = Qwen2VLTextModel
    multi_axis = True
