"""LLaVA-NeXT (1.6): a base view and tiles of the picture, without padding; a newline ends each row of the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, LlavaNextMultiModalProjector

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, checkpoint_name
from fsr_core.backbones.checkpoints.model_info import ModelInfo, config_info, model_info
from fsr_core.backbones.checkpoints.weights import Placement
from fsr_core.backbones.features import ImageFeatures, PreparedImage, Tile
from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.vision.anyres import packed_features, packer, tile_boxes, tiled_features
from fsr_core.backbones.vision.clip_text import ClipText, known_clip
from fsr_core.backbones.vision.image_processors import image_processor, sufficient_side
from fsr_core.backbones.vision.patch_encoder import PatchEncoder, text_side
from fsr_core.backbones.vision.patch_tower import PatchTower, TowerOutput
from fsr_core.backbones.vision.pixels import prepare
from fsr_core.pictures import to_rgb

__all__ = ["LlavaNextDecoder", "LlavaNextEncoder"]

Layout = Literal["stock", "tiles"]


class LlavaNextEncoder(PatchEncoder):
    """Option `layout`:

    - "stock" prepares and lays out like the library;
    - "tiles" is the setting in which papers count 2880 tokens: always the base view and 2 x 2 tiles, with padding,
      without newlines.
    """

    def __init__(
        self, tower: PatchTower, config: Any, processor: Any, info: ModelInfo, fingerprint: str, layout: Layout
    ) -> None:
        super().__init__(tower, config, processor, info, fingerprint)
        self.layout, self.newline = layout, tower.line_end

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, place: Placement, *, clip: str | None, layout: Layout = "stock"
    ) -> LlavaNextEncoder:
        """Loads the encoder from a checkpoint's folder. Raises ValueError."""
        processor = image_processor(checkpoint.folder, "LlavaNextImageProcessor")
        text = text_side(ClipText, clip or known_clip(checkpoint.name, checkpoint.folder), place)
        tower = PatchTower.load(checkpoint, LlavaNextMultiModalProjector, text, place)
        tokens = 5 * tower.side**2 if layout == "tiles" else None
        info = model_info(checkpoint, place.dtype, tokens)
        return cls(tower, checkpoint.config, processor, info, checkpoint.fingerprint, layout)

    @classmethod
    def of_model(cls, model: Any, processor: Any, *, clip: str | None, layout: Layout = "stock") -> LlavaNextEncoder:
        """Wraps the modules of a live model. Raises ValueError."""
        if layout != "stock":
            raise ValueError("family_options.layout: a live model takes pictures from its own processor; use stock")
        core, name = model.model, checkpoint_name(model)
        text = text_side(ClipText, clip or known_clip(name, Path(name)), Placement(model.device, model.dtype))
        tower = PatchTower(model.config, core.vision_tower, core.multi_modal_projector, core.image_newline, text)
        info = config_info(name, model.config, model.dtype, None)
        return cls(tower, model.config, processor.image_processor, info, "", layout)

    def _edge(self) -> int:
        return int(self.config.vision_config.image_size)

    def sufficient_side(self) -> int | None:
        return sufficient_side(self.processor)

    def preprocess(self, image: Image.Image) -> PreparedImage:
        edge = self._edge()
        options = {"image_grid_pinpoints": [[2 * edge, 2 * edge]]} if self.layout == "tiles" else {}
        out, normalisation = prepare(self.processor, to_rgb(image), **options)
        whole = (0.0, 0.0, float(image.width), float(image.height))
        side = self.vision.side
        boxes = tile_boxes(image.size, (2, 2), edge) if self.layout == "tiles" else []
        tiles = tuple(Tile(i * side**2, side, side, box) for i, box in enumerate([whole, *boxes]))
        pixels = out["pixel_values"][0]
        return PreparedImage(inputs={"pixel_values": pixels}, tiles=tiles, size=image.size, normalisation=normalisation)

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        return unbatch_tiles(inputs, self.config, self._edge(), single=False), []

    def features_of(self, image: PreparedImage, output: TowerOutput) -> ImageFeatures:
        if self.layout == "tiles":
            return tiled_features(image, output)
        columns = tile_grid(self.config, image.size, self._edge())[1]
        strategy = self.config.vision_feature_select_strategy
        pack = packer(LlavaNextModel, self.config, vision_feature_select_strategy=strategy)
        return packed_features(image, output, self.vision.side, columns, self.newline, pack)


def tile_grid(config: Any, size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Rows and columns of tiles that a picture of `size` (width, height) is cut into."""
    height, width = select_best_resolution((size[1], size[0]), config.image_grid_pinpoints)
    return height // edge, width // edge


def unbatch_tiles(inputs: Mapping[str, Any], config: Any, edge: int, single: bool) -> list[PreparedImage]:
    """The pictures of a processor's batch, without the empty tiles that pad it.

    With `single`, only the base view is taken of pictures that share a prompt.
    """
    pixels, sizes = inputs.get("pixel_values"), inputs.get("image_sizes")
    if (pixels is None) != (sizes is None):
        raise ValueError(
            "inputs: pixel_values and image_sizes belong together; pass on all that the processor returned"
        )
    if pixels is None or sizes is None:
        return []
    counts = inputs.get("batch_num_images") if single else None
    alone = [True] * len(sizes) if counts is None else [n == 1 for n in counts.tolist() for _ in range(n)]
    pictures = []
    for views, (height, width), tiled in zip(pixels, sizes.tolist(), alone, strict=True):
        rows, columns = tile_grid(config, (width, height), edge)
        used = views[: 1 + rows * columns] if tiled else views[:1]
        pictures.append(PreparedImage(inputs={"pixel_values": used}, tiles=(), size=(width, height)))
    return pictures


class LlavaNextDecoder(HalfDecoder):
    """The language model. Kept tokens and newlines take contiguous positions, as in the library's class."""
