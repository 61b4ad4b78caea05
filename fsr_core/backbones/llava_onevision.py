"""LLaVA-OneVision and LLaVA-Video: SigLIP without CLS, tiles as in LLaVA-NeXT, frames of videos pooled 2 x 2.

Relevance needs the SigLIP checkpoint that the tower comes from. The caller names it; it is never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionModel,
    LlavaOnevisionMultiModalProjector,
)

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, checkpoint_name
from fsr_core.backbones.checkpoints.model_info import ModelInfo, config_info, model_info
from fsr_core.backbones.checkpoints.weights import Placement
from fsr_core.backbones.features import ImageFeatures, PreparedImage, Tile
from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.llava_next import tile_grid, unbatch_tiles
from fsr_core.backbones.vision.anyres import packed_features, packer
from fsr_core.backbones.vision.frames import frame_processor, frames_to_rgb
from fsr_core.backbones.vision.image_processors import image_processor, square, sufficient_side, video_settings
from fsr_core.backbones.vision.patch_encoder import PatchEncoder, text_side
from fsr_core.backbones.vision.patch_tower import PatchTower, TowerOutput
from fsr_core.backbones.vision.pixels import prepare
from fsr_core.backbones.vision.siglip_text import SiglipText
from fsr_core.pictures import to_rgb

__all__ = ["LlavaOnevisionDecoder", "LlavaOnevisionEncoder"]

Newlines = Literal["end", "frame", "row"]


class LlavaOnevisionEncoder(PatchEncoder):
    """Option `video_newlines`, the places of newline tokens in a video:

    - "end": one after the video, as in the library's class;
    - "frame": one after each frame;
    - "row": one after each row of a frame, as in the training of LLaVA-Video.

    A line without kept tokens has no newline.
    """

    coarse_when_multi_image = True

    def __init__(
        self,
        tower: PatchTower,
        config: Any,
        processor: Any,
        info: ModelInfo,
        fingerprint: str,
        frames: Any,
        video_newlines: Newlines,
    ) -> None:
        super().__init__(tower, config, processor, info, fingerprint)
        self.frames, self.video_newlines = frames, video_newlines
        self.newline = tower.line_end

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, place: Placement, *, clip: str | None, video_newlines: Newlines = "end"
    ) -> LlavaOnevisionEncoder:
        """Loads the encoder from a checkpoint's folder. Raises ValueError."""
        processor = image_processor(checkpoint.folder, "LlavaOnevisionImageProcessor")
        text = text_side(SiglipText, clip, place)
        tower = PatchTower.load(checkpoint, LlavaOnevisionMultiModalProjector, text, place)
        info = model_info(checkpoint, place.dtype, None)
        frames = frame_processor(
            processor, video_settings(checkpoint.folder), checkpoint.config.vision_config.image_size
        )
        return cls(tower, checkpoint.config, processor, info, checkpoint.fingerprint, frames, video_newlines)

    @classmethod
    def of_model(
        cls, model: Any, processor: Any, *, clip: str | None, video_newlines: Newlines = "end"
    ) -> LlavaOnevisionEncoder:
        """Wraps the modules of a live model. Raises ValueError."""
        core, name = model.model, checkpoint_name(model)
        text = text_side(SiglipText, clip, Placement(model.device, model.dtype))
        tower = PatchTower(model.config, core.vision_tower, core.multi_modal_projector, core.image_newline, text)
        info, images = config_info(name, model.config, model.dtype, None), processor.image_processor
        frames = frame_processor(images, {}, model.config.vision_config.image_size)
        return cls(tower, model.config, images, info, "", frames, video_newlines)

    def _edge(self) -> int:
        return int(self.config.vision_config.image_size)

    def sufficient_side(self) -> int | None:
        return sufficient_side(self.processor)

    def preprocess(self, image: Image.Image) -> PreparedImage:
        picture = to_rgb(image)
        tile = Tile(0, self.vision.side, self.vision.side, (0.0, 0.0, float(image.width), float(image.height)))
        return self._prepared(image, picture, tile)

    def preprocess_multi_image(self, image: Image.Image) -> PreparedImage:
        """One view without tiles, as the library's processor prepares each of several pictures."""
        pair = [to_rgb(image), Image.new("RGB", (1, 1))]  # the processor takes this path for several pictures only
        return self._prepared(image, [pair], Tile(0, self.vision.side, self.vision.side, square(image.size)))

    def _prepared(self, image: Image.Image, pictures: Any, tile: Tile) -> PreparedImage:
        """The image as the processor prepares the first one of `pictures`."""
        out, normalisation = prepare(self.processor, pictures)
        return PreparedImage(
            inputs={"pixel_values": out["pixel_values"][0]},
            tiles=(tile,),
            size=image.size,
            normalisation=normalisation,
        )

    def preprocess_video(self, frames: Sequence[Image.Image], fps: float = 2.0) -> PreparedImage:
        pictures = frames_to_rgb(frames, fps)
        out, normalisation = prepare(self.frames, pictures)
        size = pictures[0].size
        return PreparedImage(
            inputs={"pixel_values": out["pixel_values"]},
            tiles=self._frame_tiles(len(pictures), size),
            size=size,
            video=True,
            normalisation=normalisation,
            frame_seconds=tuple(i / fps for i in range(len(pictures))),
        )

    def video_tokens(self, frames: int, size: tuple[int, int]) -> int:
        return frames * math.ceil(self.vision.side / 2) ** 2

    def _frame_tiles(self, frames: int, size: tuple[int, int]) -> tuple[Tile, ...]:
        side = math.ceil(self.vision.side / 2)
        crop = (0.0, 0.0, float(size[0]), float(size[1]))
        return tuple(Tile(i * side**2, side, side, crop) for i in range(frames))

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        edge, videos = self._edge(), inputs.get("pixel_values_videos")
        clips = [
            PreparedImage(
                inputs={"pixel_values": frames},
                tiles=self._frame_tiles(len(frames), (edge, edge)),
                size=(edge, edge),
                video=True,
            )
            for frames in (() if videos is None else videos)
        ]
        return unbatch_tiles(inputs, self.config, edge, single=True), clips

    def features_of(self, image: PreparedImage, output: TowerOutput) -> ImageFeatures:
        if image.video:
            return self._video(image, output)
        columns = tile_grid(self.config, image.size, self._edge())[1]
        pack = packer(LlavaOnevisionModel, self.config, vision_aspect_ratio=self.config.vision_aspect_ratio)
        return packed_features(image, output, self.vision.side, columns, self.newline, pack)

    def _video(self, image: PreparedImage, output: TowerOutput) -> ImageFeatures:
        """Pools frames with the class's own pooling. It treats every channel alike, so saliency and joint embeddings
        are pooled by the same function."""
        holder: Any = SimpleNamespace(config=self.config)

        def pool(tokens: Tensor) -> Tensor:
            pooled: Tensor = LlavaOnevisionModel.apply_pooling(holder, tokens)
            return pooled

        features = pool(output.features)
        frames, n, _ = features.shape
        side = math.ceil(self.vision.side / 2)
        token = torch.arange(frames * n, device=features.device)
        lines = {"end": torch.zeros_like(token), "frame": token // n, "row": token // side}[self.video_newlines]
        joint = None
        if output.joint is not None:
            joint = torch.nn.functional.normalize(pool(output.joint), dim=-1).flatten(0, 1)
        return ImageFeatures(
            features=features.flatten(0, 1),
            saliency=pool(output.saliency.unsqueeze(-1)).flatten(),
            joint=joint,
            tiles=image.tiles,
            size=image.size,
            groups=token // n if frames > 1 else None,
            lines=lines,
            newline=self.newline,
            video=True,
            frame_seconds=image.frame_seconds,
        )


class LlavaOnevisionDecoder(HalfDecoder):
    """The language model. Kept tokens and newlines take contiguous positions, as in the library's class."""
