"""Vision towers that take views of one size, each with its projector; the one of the LLaVA families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModel

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint
from fsr_core.backbones.checkpoints.weights import Placement, load_half, materialise
from fsr_core.backbones.vision.saliency import Recorder, cls_attention, self_attention_received

__all__ = ["Instructions", "PatchTower", "TextSide", "Tower", "TowerOutput"]

_BATCH = 16  # most views in one pass of the tower; a picture of many tiles or a video takes several passes


class Instructions(Protocol):
    """Embeds instructions in the space in which their relevance is measured."""

    def chunks(self, text: str) -> int:
        """Number of the parts in which `embed` reads a text. Raises ValueError for a text without words."""
        ...

    def embed(self, texts: Sequence[str]) -> list[Tensor]: ...


class TextSide(Instructions, Protocol):
    """The text half of a joint image-text space, and the way of the tower's patches into that space."""

    def patches(self, tower: Any, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TowerOutput:
    """A tower's output for T views of n tokens: features [T, n, D], saliency [T, n], joint [T, n, P] or None."""

    features: Tensor
    saliency: Tensor
    joint: Tensor | None


class Tower(ABC):
    """A vision tower with its projector.

    Attributes:
        tower: the vision tower, a module of the library.
        side: a view has ``side * side`` tokens.
        text: what embeds instructions; None: no relevance.
    """

    tower: Any
    side: int
    text: Instructions | None

    @torch.inference_mode()
    def run(self, pixels: Tensor) -> TowerOutput:
        """Runs views ``[T, C, H, W]``, given on the tower's device and in its dtype; each independent of the others."""
        parts = [self._run(part) for part in pixels.split(_BATCH)]
        joint = [part.joint for part in parts if part.joint is not None]
        return TowerOutput(
            torch.cat([part.features for part in parts]),
            torch.cat([part.saliency for part in parts]),
            torch.cat(joint) if joint else None,
        )

    @abstractmethod
    def _run(self, pixels: Tensor) -> TowerOutput:
        """One pass of at most `_BATCH` views."""


class PatchTower(Tower):
    """Vision tower and projector of a LLaVA, loaded from a checkpoint or taken from a live model.

    Saliency and features come from the same block, whose output the model projects. This is the second-last block of
    CLIP, and the last one of a SigLIP tower that was cut by one block. It is our reading: FSR's paper speaks of a
    selected layer, and other methods' code takes this one.
    """

    text: TextSide | None

    def __init__(self, config: Any, tower: Any, projector: Any, newline: Tensor | None, text: TextSide | None) -> None:
        self.tower, self.projector, self.newline, self.text = tower, projector, newline, text
        vision = config.vision_config
        self.side = vision.image_size // vision.patch_size
        self._has_cls = config.vision_feature_select_strategy == "default"
        blocks = getattr(tower, "vision_model", tower).encoder.layers
        self._block = blocks[_blocks_read(config) - 1]
        self._recorder = Recorder(self._block)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        projector: Callable[[Any], Any],
        text: TextSide | None,
        place: Placement,
    ) -> PatchTower:
        """Loads the tower's blocks up to the last one needed, and the projector. Raises ValueError."""
        config = deepcopy(checkpoint.config)
        vision = config.vision_config
        read = _blocks_read(config)
        halves = load_half(checkpoint.folder, ("vision", "projector", "newline"), place, vision_blocks=read)
        vision._attn_implementation = place.attention
        cut = deepcopy(vision)
        cut.num_hidden_layers = read
        tower = materialise(AutoModel.from_config, cut, halves["vision"], place.device, "vision tower")
        module = materialise(projector, config, halves["projector"], place.device, "projector")
        return cls(config, tower, module, halves["newline"].get("image_newline"), text)

    @property
    def line_end(self) -> Tensor:
        """``[D]`` the newline row, for families that have one. Raises ValueError if the checkpoint lacks it."""
        if self.newline is None:
            raise ValueError("model: the checkpoint lacks image_newline; download it again")
        return self.newline

    def _run(self, pixels: Tensor) -> TowerOutput:
        with self._recorder.recording() as recorded:
            self.tower(pixels)
            before, hidden = recorded.input, recorded.output
        if self._has_cls:
            saliency, hidden = cls_attention(self._block, before), hidden[:, 1:]
        else:
            saliency = self_attention_received(self._block, before)
        joint = None if self.text is None else self.text.patches(self.tower, hidden)
        return TowerOutput(self.projector(hidden), saliency, joint)


def _blocks_read(config: Any) -> int:
    """How many blocks run before the model projects. Raises ValueError for a configuration that is not supported."""
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    if not isinstance(layer, int):
        raise ValueError("model: vision_feature_layer is a list; only checkpoints that read one layer are supported")
    has_cls = config.vision_config.model_type == "clip_vision_model"
    if strategy != ("default" if has_cls else "full"):
        raise ValueError(
            f"model: vision_feature_select_strategy {strategy!r} is not supported with a"
            f" {config.vision_config.model_type}; features must be all patches without CLS"
        )
    depth = config.vision_config.num_hidden_layers
    return layer if layer >= 0 else depth + 1 + layer
