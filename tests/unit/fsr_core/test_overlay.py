import json
import sys

import pytest
from PIL import Image, ImageChops

from fsr_core import overlay


def test_a_photograph_is_drawn_upright_as_the_encoder_saw_it(tmp_path, monkeypatch):
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
def test_of_frames_that_share_a_view_the_first_is_shown(frames, views, shown):
    pictures = [Image.new("RGB", (8, 8), (10 * i, 0, 0)) for i in range(frames)]
    plan = overlay.Plan(rows=1, columns=1, index=[0], stage=[0], merged_into=[-1], crop=(0, 0, 8, 8))
    drawn = overlay.sheet(pictures, [plan] * views)
    assert [drawn.getpixel((360 * i + 180, 180))[0] // 10 for i in range(views)] == shown
