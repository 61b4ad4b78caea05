"""A page of pictures: the tokens that each method keeps of one scene for one question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from fsr_core import overlay
from fsr_core.compressor import create
from fsr_core.evaluation.question_sets import EncodedSet
from fsr_core.tiny.hard_sets import draw

__all__ = ["write"]

_WIDTH, _COLUMNS, _TITLE = 420, 4, 34


@torch.inference_mode()
def write(encoded: EncodedSet, number: int, methods: Sequence[str], budget: int, path: Path) -> Path:
    """Draws what each method keeps for question `number` of a set at one budget, and writes the page to `path`."""
    (scene, question), image, sample = encoded.items[number], encoded.images[number], encoded.samples[number]
    picture, cells = draw(scene), []
    for method in methods:
        kept = create(method).compress(sample, budget)
        view = image.tiles[0]
        plan = overlay.Plan(
            rows=view.rows,
            columns=view.cols,
            index=kept.index.tolist(),
            stage=kept.stage.tolist(),
            merged_into=kept.merged_into.tolist(),
            crop=view.crop,
        )
        cells.append((method, overlay.draw(picture, plan)))
    height = round(cells[0][1].height * _WIDTH / cells[0][1].width) + _TITLE
    rows = -(-len(cells) // _COLUMNS)
    page = Image.new("RGB", (_WIDTH * min(_COLUMNS, len(cells)), height * rows + _TITLE), (24, 24, 28))
    pen, large, font = ImageDraw.Draw(page), ImageFont.load_default(size=22), ImageFont.load_default(size=20)
    pen.text((12, 5), f"{question.text}  ({question.answer}; {budget} of {len(sample)} tokens)", (235, 235, 235), large)
    for position, (method, drawn) in enumerate(cells):
        x, y = position % _COLUMNS * _WIDTH, position // _COLUMNS * height + _TITLE
        pen.text((x + 12, y + 6), method, (255, 205, 120), font)
        page.paste(drawn.resize((_WIDTH, height - _TITLE), Image.Resampling.LANCZOS), (x, y + _TITLE))
    page.save(path)
    return path
