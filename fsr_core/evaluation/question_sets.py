"""The questions of a set, with their pictures encoded once. Features are cached on disk for the next run."""

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
    """A set ready for compression: `items[i]` asks about `images[i]`, and `samples[i]` holds that image's tokens."""

    items: Sequence[tuple[Scene, Question]]
    images: Sequence[ImageFeatures]
    samples: Sequence[VisualTokens]


def set_size(name: str) -> int:
    """Number of questions in a whole set. Validation is as long as the test set."""
    return hard_sets.HARD_SETS[name].questions if name in hard_sets.HARD_SETS else SIZE


def questions(name: str, limit: int) -> list[tuple[Scene, Question]]:
    """The first `limit` questions of a set. A whole frozen set is checked against its recorded hash.

    Raises:
        ValueError: the set is unknown, has fewer questions, or differs from the recorded one.
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
    cache_file: Path,
    report: Callable[[int], object] = lambda done: None,
) -> EncodedSet:
    """Draws and encodes every picture, or reads its features from the file `cache_file` if there is one.

    Questions are embedded each time. Calls `report` with the number of pictures of each batch.
    """
    # All pictures have one size, so they share the layout of the first.
    first = encoder.preprocess(hard_sets.draw(items[0][0]))
    if cache_file.exists():
        with safe_open(cache_file, framework="pt") as stored:
            columns = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        report(len(items))
    else:
        columns = _encode(encoder, items, report)
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        part = cache_file.with_suffix(".part")
        save_file(columns, part)
        part.rename(cache_file)
    images = []
    for i in range(len(items)):
        row: dict[str, Any] = {name: columns[name][i] if name in columns else None for name in _TENSORS}
        images.append(ImageFeatures(**row, tiles=first.tiles, size=first.size))
    embeddings: list[Tensor | None] = []
    for start in range(0, len(items), BATCH):
        embeddings += encoder.encode_instructions([question.text for _, question in items[start : start + BATCH]])
    samples = [encoder.visual_tokens(image, text) for image, text in zip(images, embeddings, strict=True)]
    return EncodedSet(items, images, samples)


def _encode(
    encoder: VisualEncoder, items: Sequence[tuple[Scene, Question]], report: Callable[[int], object]
) -> dict[str, Tensor]:
    columns: dict[str, list[Tensor]] = {}
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        for image in encoder.encode_images([encoder.preprocess(hard_sets.draw(scene)) for scene, _ in batch]):
            if any(getattr(image, name) is not None for name in ("positions", "groups", "lines", "deepstack")):
                raise ValueError("model: has a token layout that is not supported here; evaluate it with lmms-eval")
            for name in _TENSORS:
                value = getattr(image, name)
                if value is not None:
                    columns.setdefault(name, []).append(value.cpu())
        report(len(batch))
    return {name: torch.stack(rows) for name, rows in columns.items()}
