"""What goes through a backbone: messages, prepared images, features before compression, a laid-out prompt.

Nothing here knows a model family. ``N`` is the number of visual tokens before compression, ``K`` after it,
``D`` the language model's width, ``P`` the width of the joint image-text space, ``L`` a prompt's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fsr_core.savings import Geometry

#: A region of the source picture in its own pixels: left, top, right, bottom. May reach beyond the picture
#: where the checkpoint's preprocessing pads.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What one half of a checkpoint tells about the model, for announcements, checks and savings.

    Attributes:
        name: the name the model was asked for by (alias, hub id or path).
        family: ``model_type`` of its config.
        feature_dim: ``D``.
        visual_tokens: visual tokens of every image, or None where that depends on the image.
        dtype: dtype of the weights and of the features: ``fp32``, ``fp16`` or ``bf16``.
        context_length: the longest prompt plus answer that the language model was made for, in tokens.
        geometry: the language model's shape. Its ``dtype_bytes`` are those of this half's dtype, so the
            decoder's are the ones that count for the KV cache.
    """

    name: str
    family: str
    feature_dim: int
    visual_tokens: int | None
    dtype: str
    context_length: int
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Tile:
    """One view of an image that is scored and compressed by itself; most families have exactly one.

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


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image as the checkpoint's own processor prepares it, on the CPU.

    Attributes:
        inputs: the processor's tensors by name (``pixel_values`` ``[C, H, W]`` for LLaVA), without batch axis.
        tiles: the image's views in token order.
        size: width and height of the source picture, pixels.
    """

    inputs: Mapping[str, Tensor]
    tiles: tuple[Tile, ...]
    size: tuple[int, int]

    @property
    def crop(self) -> Box:
        """Region of the source picture that the first view (the whole image, where there are more) covers."""
        return self.tiles[0].crop

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first view."""
        return self.tiles[0].rows, self.tiles[0].cols


@dataclass(frozen=True, slots=True)
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
    """

    features: Tensor
    saliency: Tensor
    joint: Tensor | None
    keys: Tensor | None
    positions: Tensor | None
    tiles: tuple[Tile, ...]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors occupy."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    @property
    def crop(self) -> Box:
        """Region of the source picture that the first view covers."""
        return self.tiles[0].crop

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first view."""
        return self.tiles[0].rows, self.tiles[0].cols


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """The place of an image in a message: an index into the request's images."""

    image: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True, slots=True)
class KeptImage:
    """The visual tokens of one image as they arrive at the language model.

    Attributes:
        features: ``[K, D]`` in layout order; any floating dtype, any device.
        index: ``[K]`` source index of each row before compression, ascending, -1 for a row that is layout
            rather than evidence (a newline); None where no language model of the family asks.
        positions: ``[K, 3]`` (t, h, w), for families that place tokens so; else None.
        grid: (t, h, w) extent of the image before compression, for families whose following text starts
            after it; else None.
    """

    features: Tensor
    index: Tensor | None = None
    positions: Tensor | None = None
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt, ready to prefill.

    Attributes:
        inputs_embeds: ``[L, D]`` in the decoder's dtype, on its device.
        token_ids: ``[L]`` int64 on the CPU; at visual places the checkpoint's image token id.
        visual_mask: ``[L]`` bool on the CPU: which places are visual.
        position_ids: ``[L]`` (or ``[3, L]`` for multi-axis positions) int64; None where they are ``0 .. L - 1``.
    """

    inputs_embeds: Tensor
    token_ids: Tensor
    visual_mask: Tensor
    position_ids: Tensor | None

    @property
    def visual_tokens(self) -> int:
        """Places held by visual tokens."""
        return int(self.visual_mask.sum())

    @property
    def text_tokens(self) -> int:
        """Places held by text, template included."""
        return len(self.token_ids) - self.visual_tokens


DTYPE_NAMES: Mapping[torch.dtype, str] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def dtype_name(dtype: torch.dtype) -> str:
    """``fp32``, ``fp16`` or ``bf16``.

    Raises:
        ValueError: any other dtype.
    """
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype = {dtype} is not supported; use torch.float32, torch.float16 or torch.bfloat16")
    return DTYPE_NAMES[dtype]
