"""Facts about a model that one half of its checkpoint knows: shapes, dtype, context length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.savings import DTYPE_BYTES, Geometry

__all__ = ["DTYPES", "ModelInfo", "config_info", "dtype_name", "dtype_of", "model_info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a model that one half of its checkpoint knows, for announcements, checks and savings.

    Attributes:
        name: alias, hub id or path by which the model was loaded.
        family: ``model_type`` of its config.
        feature_dim: ``D``, the language model's width.
        visual_tokens: visual tokens of every image, or None if that depends on the image.
        dtype: dtype of the weights and of the features: ``fp32``, ``fp16`` or ``bf16``.
        context_length: most tokens of prompt and answer together that the language model takes.
        geometry: the language model's shape. Its ``dtype_bytes`` belong to this half's dtype, so the KV cache follows
            from the decoder's.
    """

    name: str
    family: str
    feature_dim: int
    visual_tokens: int | None
    dtype: str
    context_length: int
    geometry: Geometry


def model_info(checkpoint: Checkpoint, dtype: torch.dtype, visual_tokens: int | None) -> ModelInfo:
    """The facts about a checkpoint loaded in `dtype`."""
    return config_info(checkpoint.name, checkpoint.config, dtype, visual_tokens)


def config_info(model: str, config: Any, dtype: torch.dtype, visual_tokens: int | None) -> ModelInfo:
    """The facts about a model of a vision-language configuration in `dtype`."""
    text, name = config.text_config, dtype_name(dtype)
    return ModelInfo(
        name=model,
        family=config.model_type,
        feature_dim=text.hidden_size,
        visual_tokens=visual_tokens,
        dtype=name,
        context_length=text.max_position_embeddings,
        geometry=Geometry.from_config(text, dtype_bytes=DTYPE_BYTES[name]),
    )


#: The dtypes of weights and features, by the names that options and announcements use.
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The dtype that ``fp32``, ``fp16`` or ``bf16`` names.

    Raises:
        ValueError: any other name.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is unknown; use {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """``fp32``, ``fp16`` or ``bf16``.

    Raises:
        ValueError: any other dtype.
    """
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise ValueError(f"dtype: {dtype} is not supported; use torch.float32, torch.float16 or torch.bfloat16")
