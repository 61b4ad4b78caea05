"""The table of model families, and loading of their halves by a model's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.weights import Placement

__all__ = ["FAMILIES", "Family", "load_decoder", "load_encoder", "wrap_encoder"]


@dataclass(frozen=True, slots=True)
class Family:
    """The file of a family under ``fsr_core/backbones``, and its two classes there.

    The encoder class has ``load(checkpoint, placement, *, clip, **options)`` and
    ``of_model(model, processor, *, clip, **options)``. The decoder class takes ``(checkpoint, placement)``. ``options``
    are the encoder's options, each with its allowed values.
    """

    module: str
    encoder: str
    decoder: str
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """One of its classes. The family's file is imported on this call."""
        return getattr(import_module(f"fsr_core.backbones.{self.module}"), name)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises ValueError for an option that the encoder does not have, and for an unknown value."""
        for name, value in options.items():
            if name not in self.options:
                known = f"its options are {', '.join(self.options)}" if self.options else "it has none"
                raise ValueError(f"family_options: {self.module} has no option {name!r}; {known}")
            if value not in self.options[name]:
                raise ValueError(f"family_options.{name}: {value!r} is unknown; use {' or '.join(self.options[name])}")


_RELEVANCE = {"relevance": ("none", "instruction")}
#: ``model_type`` in a checkpoint's config -> its family. One row per family.
FAMILIES: Mapping[str, Family] = {
    "llava": Family("llava", "LlavaEncoder", "LlavaDecoder"),
    "llava_next": Family("llava_next", "LlavaNextEncoder", "LlavaNextDecoder", {"layout": ("stock", "tiles")}),
    "llava_onevision": Family(
        "llava_onevision", "LlavaOnevisionEncoder", "LlavaOnevisionDecoder", {"video_newlines": ("end", "frame", "row")}
    ),
    "qwen2_vl": Family("qwen2_vl", "Qwen2Encoder", "Qwen2Decoder", _RELEVANCE),
    "qwen2_5_vl": Family("qwen2_5_vl", "Qwen25Encoder", "Qwen25Decoder", _RELEVANCE),
    "qwen3_vl": Family("qwen3_vl", "Qwen3Encoder", "Qwen3Decoder", _RELEVANCE),
    "internvl": Family("internvl", "InternEncoder", "InternDecoder", _RELEVANCE),
    "smolvlm": Family("smolvlm", "SmolEncoder", "SmolDecoder", _RELEVANCE),
    "idefics3": Family("smolvlm", "SmolEncoder", "SmolDecoder", _RELEVANCE),
}


def load_encoder(
    model: str,
    *,
    clip: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    family_options: Mapping[str, Any] | None = None,
) -> VisualEncoder:
    """Load the encoder half of a checkpoint: the blocks of the vision tower that are needed, no language model.

    Args:
        model: ``fsr-tiny``, a checkpoint folder, or a hub id.
        clip: folder or hub id of the CLIP (or SigLIP) checkpoint with the text side; by default ``<folder>/clip``,
            else the one that is known to belong to the model; ``"none"``: no relevance.
        device, dtype: device and dtype of the weights. The device "meta" takes no memory: it only checks options,
            configuration, and names and shapes of the tensors.
        attention: attention implementation of the vision tower, by its name in the library.
        family_options: options of the model's family, by name; see its encoder class.

    Raises:
        ValueError: the checkpoint is missing, incomplete or damaged; its family is not supported or lacks an option;
            the device is missing; or there is no text side and ``clip`` is not ``"none"``.
    """
    checkpoint = Checkpoint.open(model)
    family = _family(checkpoint.config, checkpoint.name)
    family.check_options(family_options or {})
    place = Placement(_usable(device), dtype, attention)
    encoder: VisualEncoder = family.get(family.encoder).load(checkpoint, place, clip=clip, **(family_options or {}))
    return encoder


def wrap_encoder(
    model: Any, processor: Any, *, clip: str | None = None, family_options: Mapping[str, Any] | None = None
) -> VisualEncoder:
    """The encoder half of a live model of the library. It uses the model's own modules; nothing is copied.

    Raises:
        ValueError: see :func:`load_encoder`.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "model"):
        raise ValueError(f"model: {type(model).__name__} is no vision-language model of the transformers library")
    family = _family(config, type(model).__name__)
    family.check_options(family_options or {})
    encoder: VisualEncoder = family.get(family.encoder).of_model(model, processor, clip=clip, **(family_options or {}))
    return encoder


def load_decoder(
    model: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> LanguageDecoder:
    """Load the decoder half of a checkpoint: the language model without the vision tower.

    Args:
        model: see :func:`load_encoder`.
        device, dtype: device and dtype of the weights.
        attention: attention implementation of the language model, by its name in the library.

    Raises:
        ValueError: the checkpoint is missing, incomplete or damaged; its family is not supported; or the device is
            missing.
    """
    checkpoint = Checkpoint.open(model)
    family = _family(checkpoint.config, checkpoint.name)
    decoder: LanguageDecoder = family.get(family.decoder)(checkpoint, Placement(_usable(device), dtype, attention))
    return decoder


def _usable(device: str | torch.device) -> torch.device:
    """The device. Raises ValueError if no tensor can be put on it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: {str(device)!r} cannot be used here ({reason}); choose another, such as cpu"
        ) from error
    return torch.device(device)


def _family(config: Any, name: str) -> Family:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"model = {name!r} is of type {config.model_type!r}, which is not supported;"
            f" supported: {', '.join(sorted(FAMILIES))}"
        )
    return family
