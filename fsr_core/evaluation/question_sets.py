"""The questions of each set. Their pictures are encoded once; the features are stored for the next run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fsr_core.backbones import ImageFeatures
from fsr_core.backbones.base import VisualEncoder
from fsr_core.tiny import hard_sets
from fsr_core.tiny.questions import Question, frozen_questions
from fsr_core.tiny.scenes import Scene
from fsr_core.tiny.test_set import SIZE, frozen_test_set, verify
from fsr_core.tokens import VisualTokens

__all__ = ["SET_NAMES", "EncodedSet", "encode_set", "questions", "set_size"]

SET_NAMES = ("test", *hard_sets.HARD_SETS, "validation")
BATCH = 64
_TENSORS = ("features", "saliency", "joint", "keys")


@dataclass(frozen=True)
class EncodedSet:
    """A set, ready for compression: `items[i]` asks about `images[i]`, and `samples[i]` has that image's tokens."""

    items: Sequence[tuple[Scene, Question]]
    images: Sequence[ImageFeatures]
    samples: Sequence[VisualTokens]


def set_size(name: str) -> int:
    """The number of questions of a whole set. Validation counts as long as the test set; it could be longer."""
    return hard_sets.HARD_SETS[name].questions if name in hard_sets.HARD_SETS else SIZE


def questions(name: str, limit: int) -> list[tuple[Scene, Question]]:
    """The first `limit` questions of a set. A whole frozen set is checked against its record.

    Raises:
        ValueError: there is no such set, it has fewer questions, or it differs from its record.
    """
    if name == "validation":
        return frozen_questions(name, limit)
    if name == "test":
        items = frozen_test_set(limit)
        if limit == SIZE:
            verify(items)
        return items
    items = hard_sets.frozen_hard_set(name, limit)
    if limit == set_size(name):
        hard_sets.verify(name, items)
    return items


@torch.inference_mode()
def encode_set(
    encoder: VisualEncoder,
    items: Sequence[tuple[Scene, Question]],
    features_file: Path,
    progress: Callable[[int], object] = lambda done: None,
) -> EncodedSet:
    """A set with its pictures and questions encoded. The pictures' features are read from `features_file`.

    If there is no such file, the pictures are drawn and encoded, and the file is written. `progress` is called with
    numbers of encoded pictures. Raises ValueError for a model whose layout of tokens cannot be stored.
    """
    # All pictures have one size, so all have the layout of the first.
    first = encoder.preprocess(hard_sets.draw(items[0][0]))
    if features_file.exists():
        with safe_open(features_file, framework="pt") as stored:
            columns = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        progress(len(items))
    else:
        columns = _encode_pictures(encoder, items, progress)
        features_file.parent.mkdir(parents=True, exist_ok=True)
        part = features_file.with_suffix(".part")
        save_file(columns, part)
        part.rename(features_file)
    images = []
    for i in range(len(items)):
        row: dict[str, Any] = {name: columns[name][i] if name in columns else None for name in _TENSORS}
        images.append(ImageFeatures(**row, tiles=first.tiles, size=first.size))
    instructions: list[Tensor | None] = []
    for start in range(0, len(items), BATCH):
        instructions += encoder.encode_instructions([question.text for _, question in items[start : start + BATCH]])
    samples = [encoder.visual_tokens(image, text) for image, text in zip(images, instructions, strict=True)]
    return EncodedSet(items, images, samples)


def _encode_pictures(
    encoder: VisualEncoder, items: Sequence[tuple[Scene, Question]], progress: Callable[[int], object]
) -> dict[str, Tensor]:
    """The tensors of all pictures, each [pictures, ...], by name."""
    columns: dict[str, list[Tensor]] = {}
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        for image in encoder.encode_images([encoder.preprocess(hard_sets.draw(scene)) for scene, _ in batch]):
            if any(getattr(image, name) is not None for name in ("positions", "groups", "lines", "deepstack")):
                raise ValueError("model: its layout of tokens is not supported here; evaluate it through lmms-eval")
            for name in _TENSORS:
                value = getattr(image, name)
                if value is not None:
                    columns.setdefault(name, []).append(value.cpu())
        progress(len(batch))
    return {name: torch.stack(rows) for name, rows in columns.items()}
