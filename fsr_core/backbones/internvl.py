"""InternVL: InternViT with CLS, tiles and a thumbnail, 2 x 2 patches joined; the text names the frames of a video.

A picture is one run of tokens between two marks, its tiles in raster order, then the thumbnail::

    <img><IMG_CONTEXT>...<IMG_CONTEXT></img>

A video is such a run for each frame, one a line, after ``Frame1: ``, ``Frame2: ``, ... Marks and names stay, also those
of a frame of which no token is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.weights import Placement
from fsr_core.backbones.features import PreparedImage, Tile
from fsr_core.backbones.language.blocks import blocks_by
from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.prompts import KeptImage
from fsr_core.backbones.vision.frames import frame_processor, frames_to_rgb
from fsr_core.backbones.vision.image_processors import video_settings
from fsr_core.backbones.vision.pixels import prepare
from fsr_core.backbones.vision.shuffled import ShuffledEncoder, ShuffledTower
from fsr_core.backbones.vision.word_relevance import Relevance, WordRelevance
from fsr_core.pictures import to_rgb

__all__ = ["InternDecoder", "InternEncoder"]


class InternEncoder(ShuffledEncoder):
    """Option `relevance`: "none" or "instruction". Saliency is the attention of CLS in the last block, whose patches
    the model projects."""

    default_processor = "GotOcr2ImageProcessor"
    #: Settings of the video processor, and the tokenizer of a live model.
    _video: Mapping[str, Any] = {}
    _tokenizer: Any = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Placement, *, clip: str | None, relevance: Relevance = "none") -> Self:
        encoder = super().load(checkpoint, place, clip=clip, relevance=relevance)
        encoder._video = video_settings(checkpoint.folder)
        return encoder

    @classmethod
    def of_model(cls, model: Any, processor: Any, *, clip: str | None, relevance: Relevance = "none") -> Self:
        encoder = super().of_model(model, processor, clip=clip, relevance=relevance)
        encoder._tokenizer = processor.tokenizer
        return encoder

    @classmethod
    def check(cls, config: Any) -> None:
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            raise ValueError(
                "model: only the last layer's patches without CLS are supported; its config names vision_feature_layer"
                f" {config.vision_feature_layer} and vision_feature_select_strategy"
                f" {config.vision_feature_select_strategy!r}"
            )

    def view_edge(self) -> int:
        return int(self.processor.size["height"])

    @staticmethod
    def projector_of(family: str) -> Any:
        return InternVLMultiModalProjector

    @staticmethod
    def modules_of(core: Any) -> tuple[Any, Any]:
        return core.vision_tower, core.multi_modal_projector

    @staticmethod
    def tower_of(config: Any, tower: Any, projector: Any, words: WordRelevance | None) -> ShuffledTower:
        vision = config.vision_config
        patches = vision.image_size[0] // vision.patch_size[0]
        holder: Any = None  # the class's method reads nothing of the model

        def joined(hidden: Tensor) -> Tensor:
            squares = hidden.unflatten(1, (patches, patches))
            tokens = InternVLModel.pixel_shuffle(holder, squares, scale_factor=config.downsample_ratio)
            projected: Tensor = projector(tokens.flatten(1, 2))
            return projected

        return ShuffledTower(
            tower,
            tower.encoder.layer[-1],
            joined,
            patches=patches,
            merge=round(1 / config.downsample_ratio),
            has_cls=True,
            text=words,
        )

    def preprocess(self, image: Image.Image) -> PreparedImage:
        # As the checkpoint's whole processor calls it, whatever the image processor's own setting is.
        out, normalisation = prepare(self.processor, [to_rgb(image)], crop_to_patches=True)
        views = out["pixel_values"]
        columns, rows = get_optimal_tiled_canvas(
            (image.height, image.width), (self.edge, self.edge), self.processor.min_patches, self.processor.max_patches
        )
        grid = (rows, columns) if len(views) > 1 else (0, 0)
        tiles = self.tiles_of(grid, image.size)
        return PreparedImage(inputs={"pixel_values": views}, tiles=tiles, size=image.size, normalisation=normalisation)

    def preprocess_video(self, frames: Sequence[Image.Image], fps: float = 2.0) -> PreparedImage:
        pictures = frames_to_rgb(frames, fps)
        out, normalisation = prepare(frame_processor(self.processor, self._video, self.edge), pictures)
        seconds = tuple(i / fps for i in range(len(pictures)))
        return replace(self._frames(out["pixel_values"], pictures[0].size, seconds), normalisation=normalisation)

    def video_tokens(self, frames: int, size: tuple[int, int]) -> int:
        return frames * self.vision.side**2

    def _frames(self, views: Tensor, size: tuple[int, int], seconds: tuple[float, ...] = ()) -> PreparedImage:
        side, crop = self.vision.side, (0.0, 0.0, float(size[0]), float(size[1]))
        tiles = tuple(Tile(i * side**2, side, side, crop) for i in range(len(views)))
        return PreparedImage(inputs={"pixel_values": views}, tiles=tiles, size=size, video=True, frame_seconds=seconds)

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        """Pictures and videos share one placeholder, so all of them are in the first list, in order.

        The batch does not say which views belong together; the marks and frame names in its prompts do.
        """
        views, images, start = inputs.get("pixel_values"), [], 0
        if views is None:
            return [], []
        for ids in inputs["input_ids"]:
            for count, video in self._images(ids.tolist()):
                own = views[start : start + count]
                start += count
                if len(own) < count:
                    raise ValueError(
                        "pixel_values: have fewer views than the prompt; pass all that the processor returned"
                    )
                if video:
                    images.append(self._frames(own, (self.edge, self.edge)))
                    continue
                rows, columns = grid = _grid_of(own) if count > 1 else (0, 0)
                size = (max(1, columns) * self.edge, max(1, rows) * self.edge)
                images.append(PreparedImage(inputs={"pixel_values": own}, tiles=self.tiles_of(grid, size), size=size))
        return images, []

    def _images(self, ids: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Number of views of each image of a prompt, and whether it is a video."""
        frames, before = 0, list[int]()
        for visual, run in groupby(ids, lambda token: token == self.config.image_token_id):
            tokens = list(run)
            if not visual:
                before = tokens
                continue
            text = self._tokenizer.decode(before, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            views = len(tokens) // self.vision.side**2
            joined = frames and text == f"{self._tokenizer.end_image_token}\n{self._name(frames + 1)}"
            if frames and not (joined and views == 1):
                yield frames, True
                frames = 0
            if frames or (views == 1 and text.endswith(self._name(1))):
                frames += 1
            else:
                yield views, False
        if frames:
            yield frames, True

    def _name(self, frame: int) -> str:
        """The text before the tokens of this frame, counted from 1."""
        return f"Frame{frame}: {self._tokenizer.start_image_token}"

    def places(self, image: PreparedImage, views: int) -> tuple[Tensor | None, tuple[int, int, int] | None]:
        """Those of frames, so that the decoder half finds the frame of each token."""
        if not image.video:
            return None, None
        side = self.vision.side
        axes = torch.meshgrid(torch.arange(views), torch.arange(side), torch.arange(side), indexing="ij")
        return torch.stack(axes, dim=-1).view(-1, 3), (views, side, side)

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return _by_frame(image)


def _grid_of(views: Tensor) -> tuple[int, int]:
    """Rows and columns of the tiles: those with which the tiles, put together, look most like the thumbnail."""
    tiles, whole = views[:-1].float(), views[-1].float()
    grids = [(rows, len(tiles) // rows) for rows in range(1, len(tiles) + 1) if len(tiles) % rows == 0]

    def difference(grid: tuple[int, int]) -> float:
        joined = tiles.unflatten(0, grid).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        return float((F.adaptive_avg_pool2d(joined, int(whole.shape[-1])) - whole).square().mean())

    return min(grids, key=difference)


def _by_frame(image: KeptImage) -> Sequence[KeptImage]:
    if not image.video or image.positions is None or image.grid is None:
        return (image,)
    return blocks_by(image, image.positions[:, 0], image.grid[0])


class InternDecoder(HalfDecoder):
    """The language model. Kept tokens take contiguous positions, as in the library's class."""

    video_token = "<video>"

    def _check_image(self, image: KeptImage, field: str) -> None:
        super()._check_image(image, field)
        if not image.video:
            return
        if image.positions is None or image.grid is None:
            raise ValueError(
                f"{field}.positions: are missing; {self.info.family} finds the frame of each token by them"
            )
        if len(image.frame_seconds) != image.grid[0] or int(image.positions[:, 0].max()) >= image.grid[0]:
            raise ValueError(
                f"{field}.grid: {image.grid[0]} frames have {len(image.frame_seconds)} times and positions up to frame"
                f" {int(image.positions[:, 0].max()) + 1}; send one time a frame"
            )

    def placeholder(self, image: KeptImage) -> str:
        start, end = (getattr(self.tokenizer, f"{name}_image_token") for name in ("start", "end"))
        run = f"{start}{self.chat.visual_tokens[0]}{end}"
        if not image.video or image.grid is None:
            return run
        return "\n".join(f"Frame{frame + 1}: {run}" for frame in range(image.grid[0]))

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return _by_frame(image)
