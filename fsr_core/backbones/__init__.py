"""Model families: images and an instruction in, visual tokens out; kept tokens in, a laid-out prompt out."""

from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.backbones.checkpoints.checkpoint import fingerprint, resolve
from fsr_core.backbones.checkpoints.model_info import ModelInfo, dtype_of
from fsr_core.backbones.features import ImageFeatures, PreparedImage, Tile
from fsr_core.backbones.prompts import ImagePart, KeptImage, Message, Prompt, TextPart
from fsr_core.backbones.registry import FAMILIES, load_decoder, load_encoder

__all__ = [
    "FAMILIES",
    "ImageFeatures",
    "ImagePart",
    "KeptImage",
    "LanguageDecoder",
    "Message",
    "ModelInfo",
    "PreparedImage",
    "Prompt",
    "TextPart",
    "Tile",
    "VisualEncoder",
    "dtype_of",
    "fingerprint",
    "load_decoder",
    "load_encoder",
    "resolve",
]
