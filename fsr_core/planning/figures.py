"""What a plan needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from fsr_core.savings import Geometry

__all__ = ["ModelFigures"]

_BYTES = 2  # of a weight, and of a number in the KV cache: bf16 or fp16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """What a plan needs to know of a vision-language model.

    Attributes:
        name: hub id or folder.
        family: ``model_type`` of its config.
        geometry: of the language model, in 16 bits.
        decoder_parameters: of the language model with its head.
        encoder_parameters: of the vision tower that is run, the projector and CLIP's text tower.
        visual_tokens: of a usual picture, before compression; see docs/models.md.
        tower_flops: of the vision tower and the projector for that picture.
        deepstack_layers: further rows that are sent with each visual token.
    """

    name: str
    family: str
    geometry: Geometry
    decoder_parameters: int
    encoder_parameters: int
    visual_tokens: int
    tower_flops: int
    deepstack_layers: int = 0

    @property
    def decoder_bytes(self) -> int:
        return _BYTES * self.decoder_parameters

    @property
    def encoder_bytes(self) -> int:
        return _BYTES * self.encoder_parameters

    def tower_flops_of(self, visual_tokens: int) -> float:
        """FLOPs of the vision tower for a picture of so many tokens, in proportion to the usual one."""
        return self.tower_flops * visual_tokens / self.visual_tokens
