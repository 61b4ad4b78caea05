"""Qwen3-VL: no windows, features of several depths (DeepStack), videos written frame by frame with their times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel

from fsr_core.backbones.language.blocks import blocks_by
from fsr_core.backbones.language.half_decoder import HalfDecoder
from fsr_core.backbones.prompts import KeptImage
from fsr_core.backbones.vision.qwen_encoder import QwenEncoder

__all__ = ["Qwen3Decoder", "Qwen3Encoder"]


class Qwen3Encoder(QwenEncoder):
    """Option `relevance`: "none" or "instruction". Saliency is read in the last block; all have full attention.

    The text between the frames of a video says their times. The temporal positions only tell the frames apart until
    they are laid out.
    """

    tower_class = Qwen3VLVisionModel
    video_pixels = (128 * 32 * 32, 768 * 32 * 32)

    def video_size(self, frames: int, height: int, width: int, factor: int) -> tuple[int, int]:
        """Multiples of `factor`, near the video's own size and shape, so that all frames have `min_pixels..max_pixels`.

        Not the library's `smart_resize` of this family: that refuses a single frame, and differs for an odd number of
        frames and for sides shorter than `factor`.
        """
        pair = int(self.config.temporal_patch_size)
        steps = max(pair, round(frames / pair) * pair)
        rows, columns = round(height / factor), round(width / factor)
        if steps * rows * columns * factor**2 > self.max_pixels:
            shrink = math.sqrt(steps * height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / factor))
            columns = max(1, math.floor(width / shrink / factor))
        elif steps * rows * columns * factor**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (steps * height * width))
            rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
        return rows * factor, columns * factor

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return by_frame(image)


def by_frame(image: KeptImage) -> Sequence[KeptImage]:
    """A video as one block a frame, in order; a picture as one block.

    A frame without kept tokens is an empty block, so what follows a frame stands where it stood before compression.
    """
    if not image.video or image.positions is None or image.grid is None:
        return (image,)
    frames = blocks_by(image, image.positions[:, 0], image.grid[0])
    grid = (1, *image.grid[1:])
    return [replace(frame, positions=_at_time_0(frame.positions), grid=grid) for frame in frames]


def _at_time_0(positions: Tensor | None) -> Tensor | None:
    return None if positions is None else positions * positions.new_tensor([0, 1, 1])


class Qwen3Decoder(HalfDecoder):
    """The language model. A video is laid out frame by frame: the frame's time in seconds, then its tokens at temporal
    position 0. The time stays even if no token of the frame was kept."""

    text_model = Qwen3VLTextModel
    multi_axis = True

    def placeholder(self, image: KeptImage) -> str | None:
        if not image.video or image.grid is None:
            return None
        if len(image.frame_seconds) != image.grid[0]:
            raise ValueError(
                f"images: a video of {image.grid[0]} steps has {len(image.frame_seconds)} times; send one a step"
            )
        if image.positions is not None and int(image.positions[:, 0].max()) >= image.grid[0]:
            raise ValueError(f"images: positions of a video reach beyond its {image.grid[0]} steps")
        token = self.chat.visual_tokens[1]
        block = f"<|vision_start|>{token}<|vision_end|>"
        return "".join(f"<{second:.1f} seconds>{block}" for second in image.frame_seconds)

    def blocks(self, image: KeptImage) -> Sequence[KeptImage]:
        return by_frame(image)
