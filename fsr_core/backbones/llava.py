"""LLaVA-1.5: CLIP vision tower, MLP projector, language model; relevance from CLIP's own text tower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, checkpoint_name
from fsr_core.backbones.checkpoints.model_info import config_info, model_info
from fsr_core.backbones.checkpoints.weights import Placement
from fsr_core.backbones.features import Box, ImageFeatures, PreparedImage, Tile
from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.vision.clip_text import ClipText, known_clip
from fsr_core.backbones.vision.image_processors import image_processor, sufficient_side, visible
from fsr_core.backbones.vision.patch_encoder import PatchEncoder, text_side
from fsr_core.backbones.vision.patch_tower import PatchTower, TowerOutput
from fsr_core.backbones.vision.pixels import prepare
from fsr_core.pictures import to_rgb

__all__ = ["LlavaDecoder", "LlavaEncoder"]


class LlavaEncoder(PatchEncoder):
    """Vision tower (only the blocks that LLaVA reads), projector, and CLIP's text tower."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Placement, *, clip: str | None) -> LlavaEncoder:
        """Loads the encoder from a checkpoint's folder. Raises ValueError."""
        processor = image_processor(checkpoint.folder, "CLIPImageProcessor")
        text = text_side(ClipText, clip or known_clip(checkpoint.name, checkpoint.folder), place)
        tower = PatchTower.load(checkpoint, LlavaMultiModalProjector, text, place)
        info = model_info(checkpoint, place.dtype, tower.side**2)
        return cls(tower, checkpoint.config, processor, info, checkpoint.fingerprint)

    @classmethod
    def of_model(cls, model: Any, processor: Any, *, clip: str | None) -> LlavaEncoder:
        """Wraps the modules of a live model. Raises ValueError."""
        core, name = model.model, checkpoint_name(model)
        text = text_side(ClipText, clip or known_clip(name, Path(name)), Placement(model.device, model.dtype))
        tower = PatchTower(model.config, core.vision_tower, core.multi_modal_projector, None, text)
        info = config_info(name, model.config, model.dtype, tower.side**2)
        return cls(tower, model.config, processor.image_processor, info, "")

    def sufficient_side(self) -> int | None:
        return sufficient_side(self.processor)

    def shown(self, size: tuple[int, int]) -> Box:
        return visible(self.processor, size)

    def preprocess(self, image: Image.Image) -> PreparedImage:
        out, normalisation = prepare(self.processor, to_rgb(image))
        return PreparedImage(
            inputs={"pixel_values": out["pixel_values"][0]},
            tiles=(self._tile(self.shown(image.size)),),
            size=image.size,
            normalisation=normalisation,
        )

    def _tile(self, crop: Box) -> Tile:
        return Tile(0, self.vision.side, self.vision.side, crop)

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        pixels = inputs.get("pixel_values")
        size = self.config.vision_config.image_size
        tile = self._tile((0.0, 0.0, float(size), float(size)))
        rows = [] if pixels is None else pixels
        return [PreparedImage(inputs={"pixel_values": row}, tiles=(tile,), size=(size, size)) for row in rows], []

    def features_of(self, image: PreparedImage, output: TowerOutput) -> ImageFeatures:
        return ImageFeatures(
            features=output.features[0],
            saliency=output.saliency[0],
            joint=None if output.joint is None else output.joint[0],
            tiles=image.tiles,
            size=image.size,
        )


class LlavaDecoder(HalfDecoder):
    """The language model of a LLaVA. Kept tokens take contiguous positions, like the tokens of the library's class."""
