"""The encoder half of families whose tower takes views of one size: tower, projector, and a text side for relevance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsr_core.backbones.base import VisualEncoder
from fsr_core.backbones.checkpoints.model_info import ModelInfo
from fsr_core.backbones.checkpoints.weights import Placement
from fsr_core.backbones.features import ImageFeatures, PreparedImage
from fsr_core.backbones.vision.patch_tower import Instructions, TextSide, Tower, TowerOutput
from fsr_core.backbones.vision.pixels import tower_pixels

__all__ = ["PatchEncoder", "text_side"]


class PatchEncoder(VisualEncoder):
    """Runs a tower on views. A family adds two things:

    - how a picture is prepared: as `pixel_values` of its views, `[T, C, H, W]`, or `[C, H, W]` for a single view;
    - how the tower's output for these views becomes the picture's features (`features_of`).
    """

    def __init__(self, tower: Tower, config: Any, processor: Any, info: ModelInfo, fingerprint: str) -> None:
        self.vision, self.config, self.processor = tower, config, processor
        self.info, self.fingerprint = info, fingerprint
        weight = next(tower.tower.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    @property
    def text(self) -> Instructions | None:
        """What embeds instructions, if anything does."""
        return self.vision.text

    @property
    def wants_instruction(self) -> bool:
        return self.vision.text is not None

    @torch.inference_mode()
    def encode_images(self, images: Sequence[PreparedImage]) -> list[ImageFeatures]:
        if not images:
            return []
        if any("pixel_values" not in image.inputs for image in images):
            raise ValueError("images: prepared for another model; use this encoder's preprocess()")
        output = self.vision.run(tower_pixels(images, self.device).to(self.dtype))
        features, start = [], 0
        for image in images:
            rows = slice(start, start + _views(image))
            start = rows.stop
            joint = None if output.joint is None else output.joint[rows]
            features.append(self.features_of(image, TowerOutput(output.features[rows], output.saliency[rows], joint)))
        # A view into the batch's tensors would keep the whole batch in memory while a cache holds one image.
        return [image.owned() for image in features]

    @abstractmethod
    def features_of(self, image: PreparedImage, output: TowerOutput) -> ImageFeatures:
        """The features of a picture from the tower's output for its views."""

    def token_counts(self, image: PreparedImage) -> list[int]:
        if image.video:
            return super().token_counts(image)
        return [self.vision.side**2] * _views(image)

    def instruction_chunks(self, instruction: str) -> int:
        return 0 if self.vision.text is None else self.vision.text.chunks(instruction)

    def encode_instructions(self, instructions: Sequence[str]) -> list[Tensor | None]:
        if any(not text.strip() for text in instructions):
            raise ValueError("instruction: is blank; ask a question")
        if self.vision.text is None or not instructions:
            return [None] * len(instructions)
        return list(self.vision.text.embed(instructions))


def _views(image: PreparedImage) -> int:
    pixels = image.inputs["pixel_values"]
    return len(pixels) if pixels.dim() == 4 else 1


def text_side(kind: Any, name: str | None, place: Placement) -> TextSide | None:
    """The text tower of the checkpoint `name`; None for no name or "none". Raises ValueError that names `clip`."""
    try:
        return None if name in (None, "none") else kind(name, place)
    except ValueError as error:
        raise ValueError(f"clip: {str(error).removeprefix('clip: ').removeprefix('model: ')}") from error
