"""What goes through a backbone: messages, prepared images, features before compression, a laid-out prompt.

Nothing here knows a model family. ``N`` is the number of visual tokens before compression, ``K`` after it,
``D`` the language model's width, ``P`` the width of the joint image-text space, ``L`` a prompt's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

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
        groups: ``[N]`` int64, ascending from 0: tokens of one tile or frame, which an even spread gives an equal
            share of the budget each; None where all belong together.
        deepstack: ``[J, N, D]`` what the language model adds to the outputs of its first ``J`` blocks at these
            tokens (Qwen3-VL), else None.
        newline: ``[D]`` the row that ends a line of the last view, for families that lay one out; else None.
        grid: (t, h, w) extent in tokens, for language models that place what follows by it; else None.
        frame_seconds: seconds of the source at which each of ``t`` steps of a video lies; empty for a picture.
    """

    features: Tensor
    saliency: Tensor
    joint: Tensor | None
    keys: Tensor | None
    positions: Tensor | None
    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    groups: Tensor | None = None
    deepstack: Tensor | None = None
    newline: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    frame_seconds: tuple[float, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors occupy."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, Tensor))


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
        deepstack: ``[J, K, D]`` for families whose first blocks take features too, else None.
        video: whether it is a video, which some templates announce in another way than a picture.
        frame_seconds: as in :class:`ImageFeatures`.
    """

    features: Tensor
    index: Tensor | None = None
    positions: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    deepstack: Tensor | None = None
    video: bool = False
    frame_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt, ready to prefill.

    A decoder prefills ``model(**prompt.model_inputs(), past_key_values=cache)``. The ``n``-th generated token
    (from 0) then stands at ``next_position + n``: pass :meth:`step_positions` as ``position_ids`` where
    ``position_ids`` is not None, or leave it to the model, which counts from the cache's length, where it is.

    Attributes:
        inputs_embeds: ``[L, D]`` in the decoder's dtype, on its device.
        token_ids: ``[L]`` int64 on the CPU; at visual places the checkpoint's image (or video) token id.
        visual_mask: ``[L]`` bool on the CPU: which places are visual.
        position_ids: ``[3, L]`` int64 (t, h, w) for multi-axis rotary positions; None where they are ``0 .. L - 1``.
        deepstack: ``[J, visual places, D]`` what the first ``J`` blocks add at the visual places, else None.
    """

    inputs_embeds: Tensor
    token_ids: Tensor
    visual_mask: Tensor
    position_ids: Tensor | None
    deepstack: Tensor | None = None

    @property
    def next_position(self) -> int:
        """Rotary position of the first generated token: one past the largest of the prompt, on every axis.

        With tokens dropped it may be larger than ``L``: text keeps the place it had after the whole image.
        """
        return len(self.token_ids) if self.position_ids is None else int(self.position_ids.max()) + 1

    def step_positions(self, generated: int, count: int = 1) -> Tensor | None:
        """``[3, 1, count]`` positions of the tokens after ``generated`` ones, or None where the model counts itself."""
        if self.position_ids is None:
            return None
        first = self.next_position + generated
        steps = torch.arange(first, first + count, device=self.position_ids.device)
        return steps.expand(3, 1, count)

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of the language model's forward pass for this prompt alone (batch of one)."""
        inputs: dict[str, Any] = {"inputs_embeds": self.inputs_embeds.unsqueeze(0)}
        if self.position_ids is not None:
            inputs["position_ids"] = self.position_ids.unsqueeze(1)
        if self.deepstack is not None:
            inputs["visual_pos_masks"] = self.visual_mask.unsqueeze(0).to(self.inputs_embeds.device)
            inputs["deepstack_visual_embeds"] = list(self.deepstack)
        return inputs

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
