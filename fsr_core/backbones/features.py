"""What goes through the encoder half of a backbone: prepared images, features before compression.

Nothing here knows a model family. ``N`` is the number of visual tokens before compression, ``K`` after it,
``D`` the language model's width, ``P`` the width of the joint image-text space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

#: A region of the source picture in its own pixels: left, top, right, bottom. May reach beyond the picture
#: where the checkpoint's preprocessing pads.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Tile:
    """One view of an image, or one frame of a video: a grid of tokens over a region of the picture.

    Attributes:
        start: index of its first token among the image's ``N``; its ``rows * cols`` tokens follow in raster order.
        rows, cols: its grid.
        crop: region of the source picture that the grid covers.
    """

    start: int
    rows: int
    cols: int
    crop: Box

    @property
    def stop(self) -> int:
        """Index after its last token."""
        return self.start + self.rows * self.cols


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """One image or video as the checkpoint's own processor prepares it, on the CPU.

    Attributes:
        inputs: the processor's tensors by name (``pixel_values`` ``[C, H, W]`` for LLaVA), without batch axis.
        tiles: the image's views, as far as they are known before it is encoded.
        size: width and height of the source picture, pixels.
        video: whether it is a video.
        frame_seconds: as in :class:`ImageFeatures`.
    """

    inputs: Mapping[str, Tensor]
    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    video: bool = False
    frame_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFeatures:
    """One image after vision tower and projector: everything compression needs except the instruction.

    It depends on the picture, the checkpoint and its preprocessing alone, so it may be cached and reused for
    any question, budget or method.

    Attributes:
        features: ``[N, D]`` visual tokens as the language model would receive them.
        saliency: ``[N]`` fp32, not negative.
        joint: ``[N, P]`` fp32, L2-normalised patch embeddings in the joint image-text space; None for a
            backbone without a text side.
        keys: ``[N, Dk]`` the space in which similarity is measured; None where that is ``features``.
        positions: ``[N, 3]`` int64 (t, h, w) for language models that want them, else None.
        tiles: the image's views in token order.
        size: width and height of the source picture, pixels.
        groups: ``[N]`` int64: tokens of one tile or frame, which an even spread gives an equal share of the budget
            each (see ``spread.py``); None where all belong together.
        lines: ``[N]`` int64: after the last kept token of each line the newline row follows; -1 for tokens that
            none follows; None for families without newlines.
        deepstack: ``[J, N, D]`` what the language model adds to the outputs of its first ``J`` blocks at these
            tokens (Qwen3-VL), else None.
        newline: ``[D]`` the row that ends a line, where there are ``lines``.
        grid: (t, h, w) extent in tokens, for language models that place what follows by it; else None.
        video: whether it is a video; its tiles are its frames.
        frame_seconds: seconds of the source at which each of ``t`` steps of a video lies; empty for a picture.
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
    grid: tuple[int, int, int] | None = None
    video: bool = False
    frame_seconds: tuple[float, ...] = ()

    @property
    def newlines(self) -> int:
        """Newline rows that the layout of all its tokens has."""
        return 0 if self.lines is None else len(self.lines[self.lines >= 0].unique())

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors occupy."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    def owned(self) -> ImageFeatures:
        """The same with tensors of its own: none is a view into a larger one, so `nbytes` is what it really holds."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        views: dict[str, Any] = {
            n: v for n, v in values.items() if isinstance(v, Tensor) and v.untyped_storage().nbytes() > v.nbytes
        }
        return replace(self, **{name: value.clone() for name, value in views.items()})
