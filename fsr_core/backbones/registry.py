"""From a model's name to its backbone: the table of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fsr_core.backbones import llava
from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.backbones.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Family:
    """How the two halves of one model family are loaded."""

    load_encoder: Callable[..., VisualEncoder]
    load_decoder: Callable[..., LanguageDecoder]


#: ``model_type`` in a checkpoint's config -> its family. One row per family.
FAMILIES: Mapping[str, Family] = {
    "llava": Family(llava.LlavaEncoder.load, llava.LlavaDecoder.load),
}


def load_encoder(
    model: str,
    *,
    clip: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> VisualEncoder:
    """Load the encoder half of a checkpoint: neither more blocks of the vision tower than needed, nor any of
    the language model.

    Args:
        model: ``fsr-tiny``, a checkpoint folder, or a hub id.
        clip: folder or hub id of the CLIP checkpoint that gives the text side; by default ``<folder>/clip``,
            else the one known to belong to the model; ``"none"`` goes without relevance.
        device, dtype: where and in which dtype the weights go.
        attention: attention implementation of the vision tower, as the library names them.

    Raises:
        ValueError: the checkpoint cannot be had or is incomplete, its family is not supported, or no CLIP
            text side is to be had and ``clip`` is not ``"none"``.
    """
    checkpoint = Checkpoint.open(model)
    return _family(checkpoint).load_encoder(checkpoint, clip=clip, device=device, dtype=dtype, attention=attention)


def load_decoder(
    model: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> LanguageDecoder:
    """Load the decoder half of a checkpoint: the language model without the vision tower.

    Args:
        model: as for :func:`load_encoder`.
        device, dtype: where and in which dtype the weights go.
        attention: attention implementation of the language model, as the library names them.

    Raises:
        ValueError: the checkpoint cannot be had or is incomplete, or its family is not supported.
    """
    checkpoint = Checkpoint.open(model)
    return _family(checkpoint).load_decoder(checkpoint, device=device, dtype=dtype, attention=attention)


def _family(checkpoint: Checkpoint) -> Family:
    family = FAMILIES.get(checkpoint.config.model_type)
    if family is None:
        raise ValueError(
            f"model = {checkpoint.name!r} is of type {checkpoint.config.model_type!r}, which is not supported;"
            f" supported: {', '.join(sorted(FAMILIES))}"
        )
    return family
