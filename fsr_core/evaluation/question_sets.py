"""The questions of a set with their pictures encoded once; features are kept on disk for the next run."""

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
    """A set, ready to be compressed: `items[i]` is asked about `images[i]`, which `samples[i]` is made of."""

    items: Sequence[tuple[Scene, Question]]
    images: Sequence[ImageFeatures]
    samples: Sequence[VisualTokens]


def set_size(name: str) -> int:
    """Questions in a whole set (validation is as long as the test set, by choice)."""
    return hard_sets.HARD_SETS[name].questions if name in hard_sets.HARD_SETS else SIZE


def questions(name: str, limit: int) -> list[tuple[Scene, Question]]:
    """The first `limit` questions of a set; a whole frozen set is checked against its record.

    Raises:
        ValueError: there is no such set, it is smaller, or it is not the recorded one.
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
    kept_in: Path,
    report: Callable[[int], object] = lambda done: None,
) -> EncodedSet:
    """Draws and encodes every picture, or reads back what `kept_in` holds; questions are embedded either way."""
    # All pictures are of one size, so the layout of the first holds for all.
    first = encoder.preprocess(hard_sets.draw(items[0][0]))
    if kept_in.exists():
        with safe_open(kept_in, framework="pt") as stored:
            columns = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        report(len(items))
    else:
        columns = _encode(encoder, items, report)
        kept_in.parent.mkdir(parents=True, exist_ok=True)
        part = kept_in.with_suffix(".part")
        save_file(columns, part)
        part.rename(kept_in)
    images = []
    for i in range(len(items)):
        row: dict[str, Any] = {name: columns[name][i] if name in columns else None for name in _TENSORS}
        images.append(ImageFeatures(**row, tiles=first.tiles, size=first.size))
    asked: list[Tensor | None] = []
    for start in range(0, len(items), BATCH):
        asked += encoder.encode_instructions([question.text for _, question in items[start : start + BATCH]])
    samples = [encoder.visual_tokens(image, text) for image, text in zip(images, asked, strict=True)]
    return EncodedSet(items, images, samples)


def _encode(
    encoder: VisualEncoder, items: Sequence[tuple[Scene, Question]], report: Callable[[int], object]
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        for image in encoder.encode_images([encoder.preprocess(hard_sets.draw(scene)) for scene, _ in some]):
            if any(getattr(image, name) is not None for name in ("positions", "groups", "lines", "deepstack")):
                raise ValueError("model: lays its tokens out in a way of its own; evaluate it through lmms-eval")
            for name in _TENSORS:
                value = getattr(image, name)
                if value is not None:
                    found.setdefault(name, []).append(value.cpu())
        report(len(some))
    return {name: torch.stack(rows) for name, rows in found.items()}
