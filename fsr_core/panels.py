"""Which grids of tokens are drawn together: the tiles of a picture lie side by side in one panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ELSEWHERE", "Box", "Plan", "View", "plans"]

Box = tuple[float, float, float, float]
#: Index of the first token, rows, columns, and the region of the picture that the grid covers.
View = tuple[int, int, int, Box]
#: Value in `merged_into` of a patch that a patch of another view absorbed.
ELSEWHERE = -2


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
