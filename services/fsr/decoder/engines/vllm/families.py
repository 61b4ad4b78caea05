"""Which checkpoints this engine serves, and how: decided from the configuration, before any weights are read.

A language model whose positions count 0, 1, 2, ... is a class of vLLM's own, and gets its visual tokens as prompt
embeddings. These cannot bring positions of their own. So a language model with multi-axis positions (M-RoPE) is served
by :mod:`fsr.decoder.engines.vllm.multi_axis`, a model class of ours around vLLM's layers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fsr.decoder.engines.vllm.plugin import ARCHITECTURE

__all__ = ["MULTI_AXIS", "MultiAxisText", "check_family", "is_multi_axis", "position_limit"]

# vLLM computes its table of rotary angles for this many times the context length; see `MRotaryEmbedding` there.
_TABLE_FACTOR = 4
_ROPE_TYPES = ("default",)


@dataclass(frozen=True, slots=True)
class MultiAxisText:
    """A language model with multi-axis positions.

    Attributes:
        layers: its class among the ``TEXT_MODELS`` of :mod:`fsr.decoder.engines.vllm.multi_axis`.
        interleaved: whether the three axes take turns in the rotary frequencies, or each has a section of its own.
            transformers decides this by the class, vLLM by ``rope_parameters["mrope_interleaved"]``.
    """

    layers: str
    interleaved: bool = False


#: ``model_type`` of the text configuration -> how vLLM computes it. One row per language model.
MULTI_AXIS: Mapping[str, MultiAxisText] = {
    "qwen2_vl_text": MultiAxisText("qwen2"),
    "qwen2_5_vl_text": MultiAxisText("qwen2"),
    "qwen3_vl_text": MultiAxisText("qwen3", interleaved=True),
}


def is_multi_axis(text_config: Any) -> bool:
    """Whether the positions of this language model have three axes."""
    return "mrope_section" in (getattr(text_config, "rope_parameters", None) or {})


def position_limit(text_config: Any) -> int | None:
    """Rotary positions that vLLM has angles for: 0 .. limit - 1. A position beyond them ends its engine.

    None: positions are counted, so the context length is a bound already.
    """
    return _TABLE_FACTOR * int(text_config.max_position_embeddings) if is_multi_axis(text_config) else None


def check_family(family: str, text_config: Any, known_to_vllm: Container[str]) -> None:
    """Raises ValueError if this engine cannot serve a family, or not in this environment.

    Args:
        family: ``model_type`` of the whole configuration.
        text_config: the language model's part of it.
        known_to_vllm: names of the model classes in vLLM's registry.
    """
    kind = text_config.model_type
    rope = getattr(text_config, "rope_parameters", None) or {}
    reason = None
    if not is_multi_axis(text_config):
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
        if architecture not in known_to_vllm:
            reason = f"its language model, {kind}, is none of vllm's"
    elif kind not in MULTI_AXIS:
        reason = f"multi-axis positions (M-RoPE) of {kind} are not supported; those of {', '.join(MULTI_AXIS)} are"
    elif rope.get("rope_type", "default") not in _ROPE_TYPES:
        reason = f"rope_type {rope['rope_type']!r} was not tried with multi-axis positions (M-RoPE)"
    if reason is not None:
        raise ValueError(f"engine: vllm cannot serve {family}: {reason}; use --engine transformers")
    if is_multi_axis(text_config) and ARCHITECTURE not in known_to_vllm:
        raise ValueError(
            "engine: vllm has not loaded the plugin of this package; install fsr-gateway[vllm] again, and name fsr in"
            " VLLM_PLUGINS if that is set"
        )
