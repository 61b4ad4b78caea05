"""What the Qwen-VL families share on the vision side: one tower at the picture's own resolution, tokens merged 2 x 2.

There is no CLS and no text tower. Saliency is the attention that a token receives in one block of full attention
(arXiv 2602.05809). Relevance is left out, as in the paper, or comes from the mean of the instruction's word embeddings
(an option).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from fsr_core.backbones.base import VisualEncoder
from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, checkpoint_name
from fsr_core.backbones.checkpoints.model_info import ModelInfo, config_info, model_info
from fsr_core.backbones.checkpoints.weights import Placement, load_half, materialise
from fsr_core.backbones.features import ImageFeatures, PreparedImage
from fsr_core.backbones.vision.image_processors import image_processor, video_settings
from fsr_core.backbones.vision.pixels import tower_pixels
from fsr_core.backbones.vision.qwen_pixels import QwenPixels
from fsr_core.backbones.vision.saliency import Recorder, attention_received
from fsr_core.backbones.vision.word_relevance import Relevance, WordRelevance, refuse_clip, word_tokens
from fsr_core.tokens import VisualTokens

__all__ = ["QwenEncoder"]

_PATCHES = 2**15  # patches that go through the tower at once, unless one picture has more


class QwenEncoder(VisualEncoder):
    """The tower with its merger. The defaults are those of Qwen2-VL; families set what differs.

    Args:
        visual: the tower, of a checkpoint or of a live model.
        processor: the Pillow image processor.
        video: settings of the video processor by name.
        words: for relevance from the instruction; None: no relevance.

    Attributes:
        min_pixels, max_pixels: limits for the pixels of a video.
    """

    #: The library's class of the tower, built from a vision configuration.
    tower_class: ClassVar[Any]
    #: Least and most pixels of a video, if the checkpoint does not say.
    video_pixels: ClassVar[tuple[int, int]] = (128 * 28 * 28, 768 * 28 * 28)

    def __init__(
        self,
        visual: Any,
        config: Any,
        processor: Any,
        video: Mapping[str, Any],
        words: WordRelevance | None,
        info: ModelInfo,
        fingerprint: str,
    ) -> None:
        self.visual, self.config, self.words = visual, config.vision_config, words
        self.pixels = QwenPixels(self.config, processor)
        self.info, self.fingerprint = info, fingerprint
        weight = next(visual.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        size = dict(video.get("size") or {})
        self.min_pixels = int(video.get("min_pixels") or size.get("shortest_edge") or self.video_pixels[0])
        self.max_pixels = int(video.get("max_pixels") or size.get("longest_edge") or self.video_pixels[1])
        self._merge: int = self.config.spatial_merge_size
        self._recorder = Recorder(visual.blocks[self.salient_block()])

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, place: Placement, *, clip: str | None, relevance: Relevance = "none"
    ) -> QwenEncoder:
        """Loads the encoder from a checkpoint's folder. Raises ValueError."""
        refuse_clip(clip, "Qwen-VL")
        checkpoint.config.vision_config._attn_implementation = place.attention
        tensors = load_half(checkpoint.folder, ("vision",), place)["vision"]
        visual = materialise(cls.tower_class, checkpoint.config.vision_config, tensors, place.device, "vision tower")
        words = WordRelevance.load(checkpoint.folder, place) if relevance == "instruction" else None
        return cls(
            visual,
            checkpoint.config,
            image_processor(checkpoint.folder, "Qwen2VLImageProcessor"),
            video_settings(checkpoint.folder),
            words,
            model_info(checkpoint, place.dtype, None),
            checkpoint.fingerprint,
        )

    @classmethod
    def of_model(cls, model: Any, processor: Any, *, clip: str | None, relevance: Relevance = "none") -> QwenEncoder:
        """Wraps the modules of a live model. Raises ValueError."""
        refuse_clip(clip, "Qwen-VL")
        words = WordRelevance.of_model(model, processor) if relevance == "instruction" else None
        video = getattr(processor, "video_processor", None)
        settings = {} if video is None else {"size": video.size}
        info = config_info(checkpoint_name(model), model.config, model.dtype, None)
        return cls(model.model.visual, model.config, processor.image_processor, settings, words, info, "")

    def salient_block(self) -> int:
        """Index of the block whose attention gives saliency; it must be one of full attention. By default the last."""
        return int(self.config.depth) - 1

    def merged_order(self, grid: Tensor) -> Tensor | None:
        """``[N]`` the merged tokens in the order in which the tower processes them; None: raster order."""
        return None

    def video_size(self, frames: int, height: int, width: int, factor: int) -> tuple[int, int]:
        """Height and width that the frames of a video are scaled to. By default the limits hold for each frame."""
        scaled_height, scaled_width = smart_resize(
            height, width, factor=factor, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )
        return scaled_height, scaled_width

    def time_positions(self, steps: int, seconds: float) -> Tensor:
        """``[steps]`` int64 temporal positions of a video with a step every `seconds`. By default 0, 1, 2, ..."""
        return torch.arange(steps)

    def sufficient_side(self) -> int | None:
        return self.pixels.sufficient_side()

    def preprocess(self, image: Image.Image) -> PreparedImage:
        return self.pixels.image(image)

    def preprocess_video(self, frames: Sequence[Image.Image], fps: float = 2.0) -> PreparedImage:
        return self.pixels.video(frames, fps, self.video_size)

    def video_tokens(self, frames: int, size: tuple[int, int]) -> int:
        return self.pixels.video_tokens(frames, size, self.video_size)

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        return self.pixels.unbatch(inputs)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[PreparedImage]) -> list[ImageFeatures]:
        if any("grid" not in image.inputs for image in images):
            raise ValueError("images: prepared for another model; use this encoder's preprocess()")
        features: list[ImageFeatures] = []
        batch: list[PreparedImage] = []
        for image in images:
            if batch and sum(len(one.inputs["pixel_values"]) for one in (*batch, image)) > _PATCHES:
                features += self._encode(batch)
                batch = []
            batch.append(image)
        return features + (self._encode(batch) if batch else [])

    def _encode(self, images: Sequence[PreparedImage]) -> list[ImageFeatures]:
        pixels = tower_pixels(images, self.device).to(self.dtype)
        grid = torch.stack([image.inputs["grid"] for image in images]).to(self.device)
        with self._recorder.recording() as recorded:
            out = self.visual(pixels, grid_thw=grid)
            saliency = self._saliency(recorded, grid)
        unit = self._merge**2
        counts = [len(image.inputs["pixel_values"]) // unit for image in images]
        layers = getattr(out, "deepstack_features", None)
        deep = torch.stack(layers).split(counts, dim=1) if layers else [None] * len(images)
        return [
            self._features(image, rows, salient, layer).owned()
            for image, rows, salient, layer in zip(
                images, out.pooler_output.split(counts), saliency.split(counts), deep, strict=True
            )
        ]

    def _features(self, image: PreparedImage, features: Tensor, saliency: Tensor, deep: Tensor | None) -> ImageFeatures:
        steps, rows, columns = image.inputs["grid"].tolist()
        rows, columns = rows // self._merge, columns // self._merge
        times = torch.zeros(1, dtype=torch.int64)
        if image.video:
            times = self.time_positions(steps, float(image.inputs["seconds"]))
        axes = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
        step = torch.arange(steps).repeat_interleave(rows * columns)
        return ImageFeatures(
            features=features,
            saliency=saliency,
            positions=torch.stack(axes, dim=-1).view(-1, 3).to(features.device),
            tiles=image.tiles,
            size=image.size,
            groups=step.to(features.device) if steps > 1 else None,
            deepstack=deep,
            grid=(steps, rows, columns),
            video=image.video,
            frame_seconds=image.frame_seconds,
        )

    def _saliency(self, recorded: Recorder, grid: Tensor) -> Tensor:
        """``[N]`` fp32: attention that each merged token receives, mean over heads, queries and its patches."""
        block: Any = self.visual.blocks[self.salient_block()]
        attention, hidden = block.attn, block.norm1(recorded.input)
        shape = (len(hidden), 3, attention.num_heads, -1)
        query, keys, _ = attention.qkv(hidden).view(shape).permute(1, 2, 0, 3).float().unbind(0)
        cos, sin = (part.float() for part in recorded.options["position_embeddings"])
        query, keys = (part * cos + _rotate_half(part) * sin for part in (query, keys))
        spans = torch.repeat_interleave(
            grid[:, 1] * grid[:, 2], grid[:, 0]
        ).tolist()  # patches of each frame; attention stays within a frame
        scale = float(query.shape[-1]) ** -0.5
        received = torch.cat(
            [
                attention_received(q, k, scale)
                for q, k in zip(query.split(spans, dim=1), keys.split(spans, dim=1), strict=True)
            ]
        )
        merged = received.view(-1, self._merge**2).mean(1)
        order = self.merged_order(grid)
        return merged if order is None else merged[order.argsort()]

    @property
    def wants_instruction(self) -> bool:
        return self.words is not None

    def instruction_chunks(self, instruction: str) -> int:
        return 0 if self.words is None else self.words.chunks(instruction)

    def encode_instructions(self, instructions: Sequence[str]) -> list[Tensor | None]:
        if any(not text.strip() for text in instructions):
            raise ValueError("instruction: is blank; ask a question")
        return [None] * len(instructions) if self.words is None else list(self.words.embed(instructions))

    def visual_tokens(self, image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
        return word_tokens(image, instruction)


def _rotate_half(part: Tensor) -> Tensor:
    first, second = part.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
