"""Pictures and videos, cut into patches as Qwen-VL's own preprocessing does: 2 x 2 patches that merge lie together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fsr_core.backbones.features import PreparedImage, Tile
from fsr_core.backbones.vision.frames import frames_to_rgb
from fsr_core.backbones.vision.pixels import prepare
from fsr_core.pictures import to_rgb

__all__ = ["QwenPixels", "VideoSize"]

#: (frames, height, width, factor) -> height and width that the frames are scaled to
VideoSize = Callable[[int, int, int, int], tuple[int, int]]
_LONGEST = 200  # largest ratio of the sides that the library's processors accept


class QwenPixels:
    """Prepares pictures and videos with a Pillow image processor.

    The frames of a video go through it one at a time. Then the patches of successive frames are put side by side in
    pairs, as the tower takes them.
    """

    def __init__(self, config: Any, processor: Any) -> None:
        self.config, self.processor = config, processor
        self._merge: int = config.spatial_merge_size
        self._factor: int = config.patch_size * self._merge

    def sufficient_side(self) -> int | None:
        """See `VisualEncoder.sufficient_side`. Pictures with more pixels than the processor's most are scaled down; a
        side is rounded by less than a factor first."""
        return isqrt(self.processor.size["longest_edge"]) + self._factor if self.processor.do_resize else None

    def image(self, image: Image.Image) -> PreparedImage:
        """See `VisualEncoder.preprocess`."""
        picture = to_rgb(image)
        _check_shape(picture.size)
        # A picture is a pair of equal frames. One is enough until it is on the tower's device.
        out, normalisation = prepare(self.processor, picture, temporal_patch_size=1)
        return PreparedImage(
            inputs={"pixel_values": out["pixel_values"], "grid": out["image_grid_thw"][0]},
            tiles=self._tiles(out["image_grid_thw"][0], image.size),
            size=image.size,
            normalisation=normalisation,
            equal_frames=int(self.config.temporal_patch_size),
        )

    def video(self, frames: Sequence[Image.Image], fps: float, scaled_size: VideoSize) -> PreparedImage:
        """See `VisualEncoder.preprocess_video`; `scaled_size` is the family's rule."""
        pictures = frames_to_rgb(frames, fps)
        size = pictures[0].size
        _check_shape(size)
        pair = int(self.config.temporal_patch_size)
        pictures += pictures[-1:] * (-len(pictures) % pair)
        height, width = scaled_size(len(frames), size[1], size[0], self._factor)
        scaled = [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
        out, normalisation = prepare(self.processor, scaled, do_resize=False, temporal_patch_size=1)
        _, rows, columns = out["image_grid_thw"][0].tolist()
        steps, patch = len(pictures) // pair, self.config.patch_size
        # One patch a frame -> the same patch of successive frames side by side, channel before time.
        patches = out["pixel_values"].view(steps, pair, rows * columns, -1, patch * patch)
        pixels = patches.permute(0, 2, 3, 1, 4).reshape(steps * rows * columns, -1)
        grid = torch.tensor([steps, rows, columns])
        return PreparedImage(
            inputs={"pixel_values": pixels, "grid": grid, "seconds": torch.tensor(pair / fps)},
            tiles=self._tiles(grid, size),
            size=size,
            video=True,
            normalisation=normalisation,
            frame_seconds=tuple(
                (first + min(first + pair, len(frames)) - 1) / 2 / fps for first in range(0, len(pictures), pair)
            ),
        )

    def video_tokens(self, frames: int, size: tuple[int, int], scaled_size: VideoSize) -> int:
        """See `VisualEncoder.video_tokens`; `scaled_size` is the family's rule."""
        _check_shape(size)
        height, width = scaled_size(frames, size[1], size[0], self._factor)
        return ceil(frames / self.config.temporal_patch_size) * (height // self._factor) * (width // self._factor)

    def _tiles(self, grid: Tensor, size: tuple[int, int]) -> tuple[Tile, ...]:
        steps, rows, columns = grid.tolist()
        rows, columns = rows // self._merge, columns // self._merge
        crop = (0.0, 0.0, float(size[0]), float(size[1]))
        return tuple(Tile(step * rows * columns, rows, columns, crop) for step in range(steps))

    def unbatch(self, inputs: Mapping[str, Any]) -> tuple[list[PreparedImage], list[PreparedImage]]:
        """See `VisualEncoder.unbatch`."""
        seconds = inputs.get("second_per_grid_ts")
        return (
            self._split(inputs, "pixel_values", "image_grid_thw", None),
            self._split(inputs, "pixel_values_videos", "video_grid_thw", seconds),
        )

    def _split(self, inputs: Mapping[str, Any], pixels: str, grids: str, seconds: Any) -> list[PreparedImage]:
        if (inputs.get(pixels) is None) != (inputs.get(grids) is None):
            raise ValueError(f"inputs: {pixels} and {grids} belong together; pass on all that the processor returned")
        if inputs.get(pixels) is None:
            return []
        prepared = []
        counts = inputs[grids].prod(1).tolist()
        for i, (patches, grid) in enumerate(zip(inputs[pixels].split(counts), inputs[grids].cpu(), strict=True)):
            tensors = {"pixel_values": patches, "grid": grid}
            video = grids == "video_grid_thw"
            if video:
                tensors["seconds"] = torch.as_tensor(1.0 if seconds is None else seconds[i])
            size = (int(grid[2]) * self.config.patch_size, int(grid[1]) * self.config.patch_size)
            prepared.append(PreparedImage(inputs=tensors, tiles=self._tiles(grid, size), size=size, video=video))
        return prepared


def _check_shape(size: tuple[int, int]) -> None:
    """Raises ValueError for a picture that is longer than the library accepts; its own message names no remedy."""
    if max(size) > _LONGEST * min(size):
        raise ValueError(f"image: {size[0]} x {size[1]} is more than {_LONGEST} times as long as wide; cut it")
