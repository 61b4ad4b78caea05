import json
import sys

import pytest
from PIL import Image, ImageChops

from fsr_core import overlay


def test_rotated_photograph_is_drawn_upright(tmp_path, monkeypatch):
    plan, turned = (
        {"views": [[0, 2, 1, [0, 0, 6, 8]]], "index": [0], "stage": [0], "merged_into": [-1, -1]},
        Image.Exif(),
    )
    turned[0x0112] = 6  # to be turned clockwise
    picture = Image.linear_gradient("L").resize((8, 6)).convert("RGB")
    picture.save(tmp_path / "photo.png", exif=turned)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for name in ("photo", "upright"):
        paths = [
            str(tmp_path / f"{name}.png"),
            "--plan",
            str(tmp_path / "plan.json"),
            "-o",
            str(tmp_path / f"{name}-why.png"),
        ]
        monkeypatch.setattr(sys, "argv", ["overlay", *paths])
        overlay.main()
    drawn = [Image.open(tmp_path / f"{name}-why.png") for name in ("photo", "upright")]
    assert drawn[0].size == drawn[1].size and not ImageChops.difference(*drawn).getbbox()


@pytest.mark.parametrize(
    ("frames", "views", "shown"),
    [
        (3, 2, [0, 2]),  # two frames a view, the last one repeated: Qwen
        (5, 3, [0, 2, 4]),
        (4, 2, [0, 2]),
        (3, 3, [0, 1, 2]),
        (1, 3, [0, 0, 0]),  # the views of one picture
    ],
)
def test_frames_sharing_a_view_show_the_first(frames, views, shown):
    pictures = [Image.new("RGB", (8, 8), (10 * i, 0, 0)) for i in range(frames)]
    plan = overlay.Plan(rows=1, columns=1, index=[0], stage=[0], merged_into=[-1], crop=(0, 0, 8, 8))
    drawn = overlay.sheet(pictures, [plan] * views)
    assert [drawn.getpixel((360 * i + 180, 180))[0] // 10 for i in range(views)] == shown


def test_tiles_of_a_picture_share_a_panel():
    """2 x 3 tiles of 2 x 2 cells, then the whole picture; cells are counted along the rows of all tiles."""
    tiles = [
        (4 * (3 * r + c), 2, 2, (10.0 * c, 5.0 * r, 10.0 * c + 10, 5.0 * r + 5)) for r in range(2) for c in range(3)
    ]
    merged_into = [-1] * 28
    merged_into[5], merged_into[6] = 22, 25  # into another tile, and into the whole picture
    joined, whole = overlay.plans([*tiles, (24, 2, 2, (0, 0, 30, 10))], [3, 22, 25], [0, 1, 1], merged_into)
    assert (joined.rows, joined.columns, joined.crop) == (4, 6, (0, 0, 30, 10))
    assert (list(joined.index), list(joined.stage)) == ([7, 22], [0, 1])
    assert {i: a for i, a in enumerate(joined.merged_into) if a != -1} == {3: 22, 8: overlay.ELSEWHERE}
    assert (whole.rows, whole.columns, list(whole.index)) == (2, 2, [1])


def test_frames_of_a_video_have_a_panel_each():
    frames = [(4 * i, 2, 2, (0, 0, 10, 10)) for i in range(3)]
    assert len(overlay.plans(frames, [0], [0], [-1] * 12)) == 3
