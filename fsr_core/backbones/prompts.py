"""The data of the decoder half of a backbone: a conversation, kept tokens, the laid-out prompt.

Nothing here knows a model family. ``K`` is the number of visual tokens after compression, ``D`` the language model's
width, ``L`` a prompt's length.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["ImagePart", "KeptImage", "Message", "Prompt", "TextPart"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """The place of an image in a message; `image` is an index into the request's images."""

    image: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptImage:
    """The visual tokens of one image as they arrive at the language model.

    Attributes:
        features: ``[K, D]`` in layout order; any floating dtype, any device.
        index: ``[K]`` source index of each row before compression, ascending; -1 for a newline. None: not known.
        positions: ``[K, 3]`` (t, h, w), for families that place tokens by them, or find the tile or frame of a token by
            them; else None.
        grid: (t, h, w) extent of the image before compression, for the same families; else None.
        deepstack: ``[J, K, D]`` for families that add features in their first blocks, else None.
        video: whether it is a video; some templates write videos in another way than pictures.
        frame_seconds: see :class:`~fsr_core.backbones.features.ImageFeatures`.
    """

    features: Tensor
    index: Tensor | None = None
    positions: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    deepstack: Tensor | None = None
    video: bool = False
    frame_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A whole prompt, ready to prefill.

    The ``n``-th generated token, from 0, stands at ``next_position + n``. If ``position_ids`` is None, the model may
    count from the cache's length by itself.

    Attributes:
        inputs_embeds: ``[L, D]`` in the decoder's dtype, on its device.
        token_ids: ``[L]`` int64 on the CPU; visual places hold the checkpoint's image or video token id.
        visual_mask: ``[L]`` bool on the CPU, true at visual places.
        position_ids: ``[3, L]`` int64 (t, h, w) for multi-axis rotary positions; None: they are ``0 .. L - 1``.
        deepstack: ``[J, visual places, D]`` the first ``J`` blocks add these at the visual places; else None.
    """

    inputs_embeds: Tensor
    token_ids: Tensor
    visual_mask: Tensor
    position_ids: Tensor | None
    deepstack: Tensor | None = None

    @property
    def next_position(self) -> int:
        """Rotary position of the first generated token: one past the largest of the prompt, on every axis.

        It may be larger than ``L`` if tokens were dropped, because text keeps its place after the whole image.
        """
        return len(self.token_ids) if self.position_ids is None else int(self.position_ids.max()) + 1

    @property
    def visual_tokens(self) -> int:
        """Number of visual places."""
        return int(self.visual_mask.sum())

    @property
    def text_tokens(self) -> int:
        """Number of text places, template included."""
        return len(self.token_ids) - self.visual_tokens
