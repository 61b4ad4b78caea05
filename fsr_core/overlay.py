"""A picture of the kept patches, and why: `python -m fsr_core.overlay IMAGE... --plan plan.json -o out.png`.

Focus patches are clear in an orange frame, scan patches in a blue one. A patch that was merged into a scan patch is dim
and has a line to it. Dropped patches are dark. Colour-blind people can tell the colours apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["ELSEWHERE", "Box", "Plan", "View", "draw", "plans", "sheet"]

Box = tuple[float, float, float, float]
#: Index of the first token, rows, columns, and the region of the picture that the grid covers.
View = tuple[int, int, int, Box]
#: Value in `merged_into` of a patch that a patch of another view absorbed.
ELSEWHERE = -2

FOCUS_INK, SCAN_INK, PALE = (230, 120, 0), (0, 114, 205), (235, 235, 235)
_WIDTH, _BAR = 720, 76


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is drawn over one view of a picture.

    rows, columns  the view's grid of patches
    index, stage   of the kept patches; stage 0 is focus, 1 is scan
    merged_into    for each patch the one that absorbed it, -1 for none, `ELSEWHERE` for one of another view
    crop           region of the picture that the grid covers: left, top, right, bottom in pixels
    question       title of the legend
    """

    rows: int
    columns: int
    index: Sequence[int]
    stage: Sequence[int]
    merged_into: Sequence[int]
    crop: Box
    question: str = ""

    def __post_init__(self) -> None:
        n = self.rows * self.columns
        if len(self.merged_into) != n:
            raise ValueError(f"merged_into: has {len(self.merged_into)} entries for a grid of {n} patches")
        if len(self.index) != len(self.stage) or any(not 0 <= i < n for i in self.index):
            raise ValueError("index, stage: need one entry per kept patch, within the grid")


def draw(image: Image.Image, plan: Plan) -> Image.Image:
    """The picture with its patches marked and a legend below. RGB, 720 pixels wide."""
    scale = _WIDTH / image.width
    base = image.convert("RGB").resize((_WIDTH, max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    left, top, right, bottom = (edge * scale for edge in plan.crop)
    across, down = (right - left) / plan.columns, (bottom - top) / plan.rows

    def box(i: int) -> tuple[float, float, float, float]:
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
    canvas = Image.new("RGB", (_WIDTH, base.height + _BAR), (24, 24, 28))
    canvas.paste(out, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for i, anchor in enumerate(plan.merged_into):
        if anchor >= 0:
            pen.line((middle(i), middle(anchor)), fill=(120, 190, 240), width=2)
            x, y = middle(i)
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(120, 190, 240))
    for i, stage in zip(plan.index, plan.stage, strict=True):
        x0, y0, x1, y1 = box(i)
        pen.rectangle((x0 + 1, y0 + 1, x1 - 2, y1 - 2), outline=FOCUS_INK if stage == 0 else SCAN_INK, width=4)
    _legend(pen, plan, base.height)
    return canvas


def plans(
    views: Sequence[View],
    index: Sequence[int],
    stage: Sequence[int],
    merged_into: Sequence[int],
    question: str = "",
) -> list[Plan]:
    """One plan per view; views that lie side by side share one, as tiles of a picture do.

    A view is (index of its first token, rows, columns, crop); its tokens are in raster order.
    """
    return [_plan(panel, index, stage, merged_into, question) for panel in _panels(views)]


def _panels(views: Sequence[View]) -> list[list[View]]:
    """The views, each with those before it that have its size and do not overlap it."""
    panels: list[list[View]] = []
    for view in views:
        if panels and all(_side_by_side(view, other) for other in panels[-1]):
            panels[-1].append(view)
        else:
            panels.append([view])
    return panels


def _side_by_side(one: View, other: View) -> bool:
    """Whether two grids have cells of one size, and one lies wholly beside or below the other."""
    (left, top, right, bottom), (x0, y0, x1, y1) = one[3], other[3]
    width, height = right - left, bottom - top
    slack = 1e-3 * min(width, height)
    same = one[1:3] == other[1:3] and abs(x1 - x0 - width) < slack and abs(y1 - y0 - height) < slack
    return same and (abs(left - x0) > width - slack or abs(top - y0) > height - slack)


def _plan(
    panel: Sequence[View], index: Sequence[int], stage: Sequence[int], merged_into: Sequence[int], question: str
) -> Plan:
    """The plan of views that lie side by side: their cells form one grid."""
    _, rows, columns, (left, top, right, bottom) = panel[0]
    across, down = (right - left) / columns, (bottom - top) / rows
    crops = [crop for _, _, _, crop in panel]
    left, top = min(crop[0] for crop in crops), min(crop[1] for crop in crops)
    right, bottom = max(crop[2] for crop in crops), max(crop[3] for crop in crops)
    height, width = round((bottom - top) / down), round((right - left) / across)
    cell = {}  # of each token
    for start, rows, columns, crop in panel:
        row, column = round((crop[1] - top) / down), round((crop[0] - left) / across)
        for token in range(rows * columns):
            cell[start + token] = (row + token // columns) * width + column + token % columns
    anchors = [-1] * (height * width)
    for token, place in cell.items():
        anchor = merged_into[token]
        anchors[place] = cell.get(anchor, ELSEWHERE) if anchor >= 0 else -1
    kept = [(cell[i], s) for i, s in zip(index, stage, strict=True) if i in cell]
    return Plan(
        rows=height,
        columns=width,
        index=[place for place, _ in kept],
        stage=[s for _, s in kept],
        merged_into=anchors,
        crop=(left, top, right, bottom),
        question=question,
    )


def sheet(pictures: Sequence[Image.Image], plans: Sequence[Plan]) -> Image.Image:
    """All views of a picture, or all frames of a video, side by side; a single view is the same as from `draw`.

    `pictures` is one picture for all views, or the frames of a video. If several frames share a view, as in families
    that take two frames at a time, the first one is shown.
    """
    if not pictures or not plans:
        raise ValueError("pictures, plans: need at least one each")
    each = -(-len(pictures) // len(plans))  # frames per view; the last view may have fewer
    drawn = [draw(pictures[min(i * each, len(pictures) - 1)], plan) for i, plan in enumerate(plans)]
    if len(drawn) == 1:
        return drawn[0]
    panels = [panel.resize((_WIDTH // 2, panel.height // 2), Image.Resampling.LANCZOS) for panel in drawn]
    across, height = min(4, len(panels)), max(panel.height for panel in panels)
    out = Image.new("RGB", (across * _WIDTH // 2, -(-len(panels) // across) * height), (24, 24, 28))
    for i, panel in enumerate(panels):
        out.paste(panel, (i % across * _WIDTH // 2, i // across * height))
    return out


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
        pictures = [ImageOps.exif_transpose(Image.open(path)) for path in options.images]  # upright, as for the encoder
        drawn = sheet(pictures, plans(**arguments))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"error: {error}") from error
    try:
        drawn.save(options.output)
    except (OSError, ValueError) as error:
        remedy = "give a writable path ending in .png or .jpg"
        raise SystemExit(f"error: --output: cannot write {options.output} ({error}); {remedy}") from error


if __name__ == "__main__":
    main()
