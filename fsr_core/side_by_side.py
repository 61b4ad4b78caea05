"""Two pictures beside each other, each with a caption, under one title: what a question was asked about, and what was
kept of it."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFont

from fsr_core.pictures import to_rgb

__all__ = ["side_by_side"]

_WIDTH, _LINE, _MARGIN, _LETTERS = 480, 26, 12, 96  # pixels of a picture, of a line; letters of a line over both
_DARK, _PALE, _WARM = (24, 24, 28), (235, 235, 235), (255, 205, 120)


def side_by_side(
    title: str, left: tuple[str, Image.Image], right: tuple[str, Image.Image], width: int = _WIDTH
) -> Image.Image:
    """Both pictures, `width` pixels wide each, below their captions. RGB. Texts are cut at four lines."""
    font = ImageFont.load_default(size=18)
    heading = _wrapped(title, _LETTERS)
    captions = [_wrapped(caption, _LETTERS // 2) for caption, _ in (left, right)]
    top = _LINE * (len(heading) + max(map(len, captions))) + 2 * _MARGIN
    panels = [_scaled(picture, width) for _, picture in (left, right)]
    page = Image.new("RGB", (2 * width, top + max(panel.height for panel in panels)), _DARK)
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, _MARGIN), "\n".join(heading), _PALE, font, spacing=_LINE - 18)
    for number, (lines, panel) in enumerate(zip(captions, panels, strict=True)):
        place = (number * width + _MARGIN, _MARGIN + _LINE * len(heading))
        pen.text(place, "\n".join(lines), _WARM, font, spacing=_LINE - 18)
        page.paste(panel, (number * width, top))
    return page


def _wrapped(text: str, letters: int) -> list[str]:
    return textwrap.wrap(text, letters, max_lines=4, placeholder=" ...") or [""]


def _scaled(picture: Image.Image, width: int) -> Image.Image:
    size = (width, max(1, round(picture.height * width / picture.width)))
    return to_rgb(picture).resize(size, Image.Resampling.LANCZOS)
