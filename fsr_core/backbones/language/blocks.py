"""An image whose template writes text between parts of its tokens, as one block of rows for each part."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fsr_core.backbones.prompts import KeptImage

__all__ = ["blocks_by"]


def blocks_by(image: KeptImage, part: Tensor, count: int) -> list[KeptImage]:
    """`count` blocks; the i-th has the rows for which `part` [K] is i.

    A part without kept tokens is an empty block, so the text around it stays.
    """
    blocks = []
    for number in range(count):
        rows = part == number
        features, deepstack = image.features, image.deepstack
        blocks.append(
            replace(
                image,
                features=features[rows.to(features.device)],
                index=None,
                positions=None if image.positions is None else image.positions[rows],
                deepstack=None if deepstack is None else deepstack[:, rows.to(deepstack.device)],
            )
        )
    return blocks
