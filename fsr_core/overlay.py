"""A picture of the kept patches, and why: `python -m fsr_core.overlay IMAGE... --plan plan.json -o out.png`.

Focus patches are clear in an orange frame, scan patches in a blue one. A patch that was merged into a scan patch is dim
and has a line to it. Dropped patches are dark. Colour-blind people can tell the colours apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fsr_core.panels import ELSEWHERE, Box, Plan, View, plans
from fsr_core.pictures import read_picture, to_rgb

__all__ = ["ELSEWHERE", "Box", "Plan", "View", "draw", "plans", "sheet"]

FOCUS_INK, SCAN_INK, PALE = (230, 120, 0), (0, 114, 205), (235, 235, 235)
_WIDTH, _BAR = 720, 76
# The drawn picture has the legend's width. It is larger if its patches would be smaller than _CELL otherwise, and its
# longer side is never above _LONGEST. In pixels.
_LONGEST, _CELL = 2160, 8
_FRAME = 4  # widest frame of a kept patch; small patches have a thinner one


def draw(image: Image.Image, plan: Plan) -> Image.Image:
    """The picture with its patches marked and a legend below. RGB, 720 pixels wide; wider if the patches are small."""
    scale = _scale(image.size, plan)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    base = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
    left, top, right, bottom = (edge * scale for edge in plan.crop)
    across, down = (right - left) / plan.columns, (bottom - top) / plan.rows

    def box(i: int) -> Box:
        row, column = divmod(i, plan.columns)
        x, y = left + column * across, top + row * down
        return x, y, x + across, y + down

    def middle(i: int) -> tuple[float, float]:
        x0, y0, x1, y1 = box(i)
        return (x0 + x1) / 2, (y0 + y1) / 2

    shade = Image.new("L", base.size, 205)
    dim = ImageDraw.Draw(shade)
    for i, anchor in enumerate(plan.merged_into):
        if anchor != -1:
            dim.rectangle(box(i), fill=120)
    for i in plan.index:
        dim.rectangle(box(i), fill=0)
    out = Image.composite(Image.new("RGB", base.size, (12, 12, 16)), base, shade)
    canvas = Image.new("RGB", (max(_WIDTH, base.width), base.height + _BAR), (24, 24, 28))
    canvas.paste(out, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for i, anchor in enumerate(plan.merged_into):
        if anchor >= 0:
            pen.line((middle(i), middle(anchor)), fill=(120, 190, 240), width=2)
            x, y = middle(i)
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(120, 190, 240))
    for i, stage in zip(plan.index, plan.stage, strict=True):
        _frame(pen, box(i), FOCUS_INK if stage == 0 else SCAN_INK)
    _legend(pen, plan, base.height)
    return canvas


def _scale(size: tuple[int, int], plan: Plan) -> float:
    """How many times larger than the picture of this size (width, height) its drawing is."""
    left, top, right, bottom = plan.crop
    cell = min((right - left) / plan.columns, (bottom - top) / plan.rows)
    return min(max(_WIDTH / size[0], _CELL / cell), _LONGEST / max(size))


def _frame(pen: ImageDraw.ImageDraw, box: Box, ink: tuple[int, int, int]) -> None:
    """A frame inside a patch. Of a patch without room for one, all is ink."""
    x0, y0, x1, y1 = box
    width = min(_FRAME, int(min(x1 - x0, y1 - y0) / 4))
    if width:
        pen.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline=ink, width=width)
    else:
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=ink)


def sheet(pictures: Sequence[Image.Image | Path], plans: Sequence[Plan]) -> Image.Image:
    """All views of a picture, or all frames of a video, side by side; a single view is the same as from `draw`.

    `pictures` is one picture for all views, or the frames of a video, or their files: a file is read when it is drawn,
    because all frames together may not fit into memory. If several frames share a view, as in families that take two
    frames at a time, the first one is shown. Raises ValueError if a file is no picture, OSError if it cannot be read.
    """
    if not pictures or not plans:
        raise ValueError("pictures, plans: need at least one each")
    each = -(-len(pictures) // len(plans))  # frames per view; the last view may have fewer
    if len(plans) == 1:
        return draw(_read(pictures[0]), plans[0])
    # Each drawing is made small at once: there may be hundreds.
    panels = [_half(draw(_read(pictures[min(i * each, len(pictures) - 1)]), plan)) for i, plan in enumerate(plans)]
    across, height = min(4, len(panels)), max(panel.height for panel in panels)
    out = Image.new("RGB", (across * _WIDTH // 2, -(-len(panels) // across) * height), (24, 24, 28))
    for i, panel in enumerate(panels):
        out.paste(panel, (i % across * _WIDTH // 2, i // across * height))
    return out


def _read(picture: Image.Image | Path) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    try:
        return read_picture(picture.read_bytes())
    except ValueError as error:
        raise ValueError(f"{picture}: {error}") from error


def _half(panel: Image.Image) -> Image.Image:
    width = _WIDTH // 2
    return panel.resize((width, max(1, panel.height * width // panel.width)), Image.Resampling.LANCZOS)


def _legend(pen: ImageDraw.ImageDraw, plan: Plan, top: int) -> None:
    focus = sum(stage == 0 for stage in plan.stage)
    merged = sum(anchor != -1 for anchor in plan.merged_into)
    kept = len(plan.index)
    entries = [
        (f"focus {focus}", FOCUS_INK),
        (f"scan {kept - focus}", SCAN_INK),
        (f"merged {merged}", (120, 190, 240)),
        (f"dropped {len(plan.merged_into) - kept - merged}", (90, 90, 96)),
    ]
    font, x = ImageFont.load_default(size=18), 14.0
    pen.text((x, top + 10), f"{plan.question}  ({len(plan.merged_into)} -> {kept} tokens)", PALE, font)
    for text, ink in entries:
        pen.rectangle((x, top + 46, x + 16, top + 62), fill=ink)
        pen.text((x + 24, top + 43), text, PALE, font)
        x += 24 + pen.textlength(text, font) + 28


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fsr_core.overlay", description=__doc__)
    parser.add_argument("images", type=Path, nargs="+", help="a picture, or the frames of a video in order")
    parser.add_argument("--plan", required=True, help="JSON with the arguments of plans(); - reads standard input")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    try:
        arguments = json.loads(sys.stdin.read() if options.plan == "-" else Path(options.plan).read_text())
        drawn = sheet(options.images, plans(**arguments))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"error: {error}") from error
    try:
        drawn.save(options.output)
    except (OSError, ValueError) as error:
        remedy = "give a writable path ending in .png or .jpg"
        raise SystemExit(f"error: --output: cannot write {options.output} ({error}); {remedy}") from error


if __name__ == "__main__":
    main()
