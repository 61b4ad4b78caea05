"""The data of the encoder half of a backbone: prepared images, and features before compression.

Nothing here knows a model family. ``N`` is the number of visual tokens before compression, ``D`` the language model's
width, ``P`` the width of the joint image-text space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: A region of the source picture in its own pixels: left, top, right, bottom. It may reach beyond the picture, if the
#: checkpoint's preprocessing pads.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Tile:
    """One view of an image, or one frame of a video: a grid of tokens over a region of the picture.

    Attributes:
        start: index of its first token in the image's ``N``; its ``rows * cols`` tokens are in raster order.
        rows, cols: size of its grid.
        crop: region of the source picture that the grid covers.
    """

    start: int
    rows: int
    cols: int
    crop: Box

    @property
    def stop(self) -> int:
        """The index after its last token."""
        return self.start + self.rows * self.cols


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How bytes become a tower's input, as the library's Pillow processors do it, on every device.

    Attributes:
        factor: each byte is multiplied by it, in double precision; None: bytes are taken as they are.
        mean, std: of each channel; empty: the values stay as they are.
    """

    factor: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Normalisation:
        """That of a processor of the library."""
        factor = float(processor.rescale_factor) if processor.do_rescale else None
        if not processor.do_normalize:
            return cls(factor, (), ())
        mean, std = processor.image_mean, processor.image_std
        channels = range(3)
        return cls(
            factor,
            *(tuple(v[c] if isinstance(v, Sequence) else float(v) for c in channels) for v in (mean, std)),
        )

    def __call__(self, pixels: Tensor, frames: int = 1) -> Tensor:
        """Bytes of views ``[T, 3, H, W]``, or of patches ``[P, 3 * n]`` with channels first, in fp32. Patches that show
        so many equal frames are ``[P, 3 * frames * n]``."""
        views, table, first = pixels.view(len(pixels), 3, 1, -1), *_table(self, pixels.device)
        normalised = torch.empty(len(views), 3, frames, views.shape[3], device=pixels.device)
        # On a CPU in parts that stay in its caches.
        size = max(1, _CPU_PART // views[0].numel()) if pixels.device.type == "cpu" else len(views)
        for part, out in zip(views.split(size), normalised.split(size), strict=True):
            out.copy_(table.index_select(0, part.int().add_(first).flatten()).view(part.shape))
        return normalised.view(len(pixels), -1) if frames > 1 else normalised.view(pixels.shape)


_CPU_PART = 2**17  # bytes


@cache
def _table(way: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the 256 bytes become in each channel, ``[3 * 256]`` fp32, and where a channel begins, int32 ``[3, 1, 1]``.

    It is computed on the CPU, as in the library.
    """
    byte = torch.arange(256)
    values = (byte.float() if way.factor is None else (byte.double() * way.factor).float()).repeat(3, 1)
    if way.mean:
        mean, std = (torch.tensor(part, dtype=torch.float32).unsqueeze(1) for part in (way.mean, way.std))
        values = (values - mean) / std
    first = torch.arange(0, 3 * 256, 256, dtype=torch.int32).view(3, 1, 1)
    return values.flatten().to(device), first.to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """One image or video as the checkpoint's own processor prepares it, on the CPU.

    Attributes:
        inputs: the processor's tensors by name, without batch axis (for LLaVA ``pixel_values`` ``[C, H, W]``).
        normalisation: what the tower's device does with ``pixel_values`` first, which are bytes; None: nothing.
        equal_frames: patches show so many equal frames, of which ``pixel_values`` has one.
        tiles: the image's views, if they are known before it is encoded.
        size: width and height of the source picture in pixels.
        file_size: those of its file, if that was decoded at a smaller size; regions are in pixels of the smaller one.
        video: whether it is a video.
        frame_seconds: see :class:`ImageFeatures`.
    """

    inputs: Mapping[str, Tensor]
    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    file_size: tuple[int, int] | None = None
    video: bool = False
    frame_seconds: tuple[float, ...] = ()
    normalisation: Normalisation | None = None
    equal_frames: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """One image after vision tower and projector: everything that compression needs, except the instruction.

    It depends only on the picture, the checkpoint and its preprocessing. So it may be cached and used again for any
    question, budget or method.

    Attributes:
        features: ``[N, D]`` visual tokens as the language model would receive them.
        saliency: ``[N]`` fp32, not negative.
        tiles: the image's views in token order.
        size: width and height of the source picture in pixels.
        joint: ``[N, P]`` fp32, L2-normalised patch embeddings in the joint image-text space; None for a backbone
            without a text side.
        keys: ``[N, Dk]`` the space in which similarity is measured; None: ``features``.
        positions: ``[N, 3]`` int64 (t, h, w); None if neither the language model nor the layout needs them.
        groups: ``[N]`` int64, the tile or frame of each token. An even spread gives each group an equal share of the
            budget (see ``spread.py``). None: all tokens are one group.
        lines: ``[N]`` int64, the line of each token. The newline row follows the last kept token of each line. -1: no
            newline follows. None for families without newlines.
        deepstack: ``[J, N, D]`` the language model adds these to the outputs of its first ``J`` blocks (Qwen3-VL),
            else None.
        newline: ``[D]`` the row that ends a line; None without ``lines``.
        empty_lines: lines that have no token. Their newline rows come last, and only if every token is kept: as
            everywhere, the newline of a line of which nothing is kept is left out.
        grid: (t, h, w) extent in tokens; None without positions.
        video: whether it is a video; its tiles are then its frames.
        frame_seconds: time in the source, in seconds, of each of the ``t`` steps of a video; empty for a picture.
    """

    features: Tensor
    saliency: Tensor
    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    joint: Tensor | None = None
    keys: Tensor | None = None
    positions: Tensor | None = None
    groups: Tensor | None = None
    lines: Tensor | None = None
    deepstack: Tensor | None = None
    newline: Tensor | None = None
    empty_lines: int = 0
    grid: tuple[int, int, int] | None = None
    video: bool = False
    frame_seconds: tuple[float, ...] = ()

    @property
    def newlines(self) -> int:
        """Number of newline rows in the layout of all its tokens."""
        return 0 if self.lines is None else len(self.lines[self.lines >= 0].unique()) + self.empty_lines

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    def of_size(self, size: tuple[int, int]) -> ImageFeatures:
        """The same features, with their regions in pixels of the picture at another size (width, height)."""
        across, down = size[0] / self.size[0], size[1] / self.size[1]

        def scaled(tile: Tile) -> Tile:
            left, top, right, bottom = tile.crop
            return replace(tile, crop=(left * across, top * down, right * across, bottom * down))

        return replace(self, tiles=tuple(map(scaled, self.tiles)), size=size)

    def owned(self) -> ImageFeatures:
        """A copy in which no tensor is a view into a larger one, so that `nbytes` is the memory it really holds."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        views: dict[str, Any] = {
            n: v for n, v in values.items() if isinstance(v, Tensor) and v.untyped_storage().nbytes() > v.nbytes
        }
        return replace(self, **{name: value.clone() for name, value in views.items()})
