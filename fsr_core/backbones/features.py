"""The data of the encoder half of a backbone: prepared images, and features before compression.

Nothing here knows a model family. ``N`` is the number of visual tokens before compression, ``D`` the language model's
width, ``P`` the width of the joint image-text space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """One image or video as the checkpoint's own processor prepares it, on the CPU.

    Attributes:
        inputs: the processor's tensors by name, without batch axis (for LLaVA ``pixel_values`` ``[C, H, W]``).
        tiles: the image's views, if they are known before it is encoded.
        size: width and height of the source picture in pixels.
        video: whether it is a video.
        frame_seconds: see :class:`ImageFeatures`.
    """

    inputs: Mapping[str, Tensor]
    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    video: bool = False
    frame_seconds: tuple[float, ...] = ()


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

    def owned(self) -> ImageFeatures:
        """A copy in which no tensor is a view into a larger one, so that `nbytes` is the memory it really holds."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        views: dict[str, Any] = {
            n: v for n, v in values.items() if isinstance(v, Tensor) and v.untyped_storage().nbytes() > v.nbytes
        }
        return replace(self, **{name: value.clone() for name, value in views.items()})
