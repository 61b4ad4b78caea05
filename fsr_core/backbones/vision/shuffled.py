"""What InternVL and SmolVLM share: views of one size, whose patches are joined to fewer tokens before the projector.

Joining (pixel shuffle) puts the channels of ``merge x merge`` neighbouring patches side by side. Saliency of a token is
the mean over its patches, as for Qwen-VL's merged tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from fsr_core.backbones.checkpoints.checkpoint import Checkpoint, checkpoint_name
from fsr_core.backbones.checkpoints.model_info import ModelInfo, config_info, model_info
from fsr_core.backbones.checkpoints.weights import Placement, load_half, materialise
from fsr_core.backbones.features import ImageFeatures, PreparedImage, Tile
from fsr_core.backbones.vision.image_processors import image_processor
from fsr_core.backbones.vision.patch_encoder import PatchEncoder
from fsr_core.backbones.vision.patch_tower import Tower, TowerOutput
from fsr_core.backbones.vision.saliency import Recorder, cls_attention, self_attention_received
from fsr_core.backbones.vision.word_relevance import Relevance, WordRelevance, refuse_clip, word_tokens
from fsr_core.tokens import VisualTokens

__all__ = ["ShuffledEncoder", "ShuffledTower"]


class ShuffledTower(Tower):
    """A tower whose last block gives features and saliency.

    Args:
        tower: the vision tower.
        block: its last block.
        projector: joins the patches of that block's output and projects them.
        patches: patches on each side of a view.
        merge: patches on each side of a token.
        has_cls: whether the tower has a CLS token; then saliency is its attention, else the attention received.
        text: for relevance from the instruction; None: no relevance.
    """

    def __init__(
        self,
        tower: Any,
        block: Any,
        projector: Any,
        *,
        patches: int,
        merge: int,
        has_cls: bool,
        text: WordRelevance | None,
    ) -> None:
        self.tower, self.projector, self.text = tower, projector, text
        self.side = patches // merge
        self._block, self._patches, self._merge, self._has_cls = block, patches, merge, has_cls
        self._recorder = Recorder(block)

    def _run(self, pixels: Tensor) -> TowerOutput:
        with self._recorder.recording() as recorded:
            hidden = self.tower(pixels).last_hidden_state
            before = recorded.input
        if self._has_cls:
            saliency, hidden = cls_attention(self._block, before), hidden[:, 1:]
        else:
            saliency = self_attention_received(self._block, before)
        squares = saliency.unflatten(1, (self._patches, self._patches))
        return TowerOutput(self.projector(hidden), F.avg_pool2d(squares, self._merge).flatten(1), None)


class ShuffledEncoder(PatchEncoder):
    """Option `relevance`: "none" or "instruction". A family says where its parts are and how they are put together."""

    #: The image processor of checkpoints that name none.
    default_processor: ClassVar[str]

    vision: ShuffledTower

    def __init__(self, vision: ShuffledTower, config: Any, processor: Any, info: ModelInfo, fingerprint: str) -> None:
        super().__init__(vision, config, processor, info, fingerprint)
        size = config.vision_config.image_size
        self.edge: int = size if isinstance(size, int) else size[0]
        if self.view_edge() != self.edge:
            raise ValueError(
                f"model: its image processor makes views of {self.view_edge()} pixels, its tower takes {self.edge}; use"
                " the preprocessor_config.json that belongs to the checkpoint"
            )

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Placement, *, clip: str | None, relevance: Relevance = "none") -> Self:
        """Loads the encoder from a checkpoint's folder. Raises ValueError."""
        config = deepcopy(checkpoint.config)
        refuse_clip(clip, config.model_type)
        cls.check(config)
        processor = image_processor(checkpoint.folder, cls.default_processor)
        words = WordRelevance.load(checkpoint.folder, place) if relevance == "instruction" else None
        halves = load_half(checkpoint.folder, ("vision", "projector"), place)
        config.vision_config._attn_implementation = place.attention
        tower = materialise(AutoModel.from_config, config.vision_config, halves["vision"], place.device, "vision tower")
        projector = materialise(
            cls.projector_of(config.model_type), config, halves["projector"], place.device, "projector"
        )
        info = model_info(checkpoint, place.dtype, None)
        vision = cls.tower_of(config, tower, projector, words)
        return cls(vision, config, processor, info, checkpoint.fingerprint)

    @classmethod
    def of_model(cls, model: Any, processor: Any, *, clip: str | None, relevance: Relevance = "none") -> Self:
        """Wraps the modules of a live model. Raises ValueError."""
        refuse_clip(clip, model.config.model_type)
        cls.check(model.config)
        words = WordRelevance.of_model(model, processor) if relevance == "instruction" else None
        tower, projector = cls.modules_of(model.model)
        info = config_info(checkpoint_name(model), model.config, model.dtype, None)
        vision = cls.tower_of(model.config, tower, projector, words)
        return cls(vision, model.config, processor.image_processor, info, "")

    @classmethod
    def check(cls, config: Any) -> None:
        """Raises ValueError for a configuration that is not supported."""

    @abstractmethod
    def view_edge(self) -> int:
        """Width and height of the image processor's views, in pixels."""

    @staticmethod
    @abstractmethod
    def projector_of(family: str) -> Any:
        """What builds the projector from a configuration of this ``model_type``."""

    @staticmethod
    @abstractmethod
    def modules_of(core: Any) -> tuple[Any, Any]:
        """Tower and projector of a live model."""

    @staticmethod
    @abstractmethod
    def tower_of(config: Any, tower: Any, projector: Any, words: WordRelevance | None) -> ShuffledTower:
        """Tower and projector put together."""

    def visual_tokens(self, image: ImageFeatures, instruction: Tensor | None) -> VisualTokens:
        return word_tokens(image, instruction)

    def features_of(self, image: PreparedImage, output: TowerOutput) -> ImageFeatures:
        views, n, _ = output.features.shape
        device = output.saliency.device
        positions, grid = self.places(image, views)
        return ImageFeatures(
            features=output.features.flatten(0, 1),
            saliency=output.saliency.flatten(),
            tiles=image.tiles,
            size=image.size,
            groups=torch.arange(views, device=device).repeat_interleave(n) if views > 1 else None,
            positions=None if positions is None else positions.to(device),
            grid=grid,
            video=image.video,
            frame_seconds=image.frame_seconds,
        )

    def places(self, image: PreparedImage, views: int) -> tuple[Tensor | None, tuple[int, int, int] | None]:
        """Positions ``[N, 3]`` and grid, for layouts that need them (see `ImageFeatures`)."""
        return None, None

    def tiles_of(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[Tile, ...]:
        """The views of a picture of `size` (width, height): `grid` (rows, columns) tiles that divide it, then, if there
        are any, the whole picture."""
        side, (rows, columns), (width, height) = self.vision.side, grid, size
        across, down = width / max(1, columns), height / max(1, rows)
        boxes = [(c * across, r * down, (c + 1) * across, (r + 1) * down) for r in range(rows) for c in range(columns)]
        boxes.append((0.0, 0.0, float(width), float(height)))
        return tuple(Tile(i * side**2, side, side, box) for i, box in enumerate(boxes))
