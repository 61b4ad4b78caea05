"""What the LLaVA families share on the vision side: a patch tower, an MLP projector, and a joint image-text space."""

from __future__ import annotations

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

__all__ = ["PatchTower", "TextSide", "TowerOutput"]

_BATCH = 16  # views that go through the tower at once; a picture of many tiles or a video is split


class TextSide(Protocol):
    """The text half of a joint image-text space."""

    def patches(self, tower: Any, hidden: Tensor) -> Tensor: ...

    def embed(self, texts: Sequence[str]) -> list[Tensor]: ...


@dataclass(frozen=True)
class TowerOutput:
    """What a tower sees in T views of n patches: features [T, n, D], saliency [T, n], joint [T, n, P] or None."""

    features: Tensor
    saliency: Tensor
    joint: Tensor | None


class PatchTower:
    """Vision tower and projector of a LLaVA, its own modules or a live model's, and where saliency is read.

    Saliency and features come from the same block, the one whose output the model projects: CLIP's second-last, and
    the last of a SigLIP tower that was cut by one block.
    """

    def __init__(self, config: Any, tower: Any, projector: Any, newline: Tensor | None, text: TextSide | None) -> None:
        self.tower, self.projector, self.newline, self.text = tower, projector, newline, text
        vision = config.vision_config
        self.side: int = vision.image_size // vision.patch_size
        self._has_cls = config.vision_feature_select_strategy == "default"
        blocks = getattr(tower, "vision_model", tower).encoder.layers
        self._block = blocks[_read(config) - 1]
        self._recorder = Recorder(self._block)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        projector: Callable[[Any], Any],
        text: TextSide | None,
        place: Placement,
    ) -> PatchTower:
        """Reads the tower's blocks up to the last one needed, and the projector. Raises ValueError."""
        config = deepcopy(checkpoint.config)
        vision = config.vision_config
        read = _read(config)
        halves = load_half(checkpoint.folder, ("vision", "projector", "newline"), place, vision_blocks=read)
        vision._attn_implementation = place.attention
        shown = deepcopy(vision)
        shown.num_hidden_layers = read
        tower = materialise(AutoModel.from_config, shown, halves["vision"], place.device, "vision tower")
        made = materialise(projector, config, halves["projector"], place.device, "projector")
        return cls(config, tower, made, halves["newline"].get("image_newline"), text)

    @property
    def line_end(self) -> Tensor:
        """``[D]`` the newline row, for families that have one. Raises ValueError where the checkpoint lacks it."""
        if self.newline is None:
            raise ValueError("model: the checkpoint lacks image_newline; download it again")
        return self.newline

    @torch.inference_mode()
    def see(self, pixels: Tensor) -> TowerOutput:
        """Views ``[T, C, H, W]`` on the tower's device and in its dtype; each gives what it gives alone."""
        parts = [self._see(part) for part in pixels.split(_BATCH)]
        joint = [part.joint for part in parts if part.joint is not None]
        return TowerOutput(
            torch.cat([part.features for part in parts]),
            torch.cat([part.saliency for part in parts]),
            torch.cat(joint) if joint else None,
        )

    def _see(self, pixels: Tensor) -> TowerOutput:
        with self._recorder.recording() as seen:
            self.tower(pixels)
            entered, hidden = seen.entered, seen.left
        if self._has_cls:
            saliency, hidden = cls_attention(self._block, entered), hidden[:, 1:]
        else:
            saliency = self_attention_received(self._block, entered)
        joint = None if self.text is None else self.text.patches(self.tower, hidden)
        return TowerOutput(self.projector(hidden), saliency, joint)


def _read(config: Any) -> int:
    """Number of blocks whose output the model projects. Raises ValueError for what is not supported."""
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
