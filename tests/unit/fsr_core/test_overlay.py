import json
import sys
import tracemalloc

import pytest
from PIL import Image, ImageChops

from fsr_core import overlay
from helpers.png import before_pixels, chunk


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


def plan_of(size, side=24, crop=None):
    """A grid of side x side cells over a picture of this size, with a focus, a scan and a merged patch."""
    merged_into = [-1] * side**2
    merged_into[1] = 5
    crop = crop or (0.0, 0.0, float(size[0]), float(size[1]))
    return overlay.Plan(rows=side, columns=side, index=[0, 5], stage=[0, 1], merged_into=merged_into, crop=crop)


SHAPES = [(728, 90), (970, 90), (2000, 150), (200, 1), (1, 200), (10, 2000), (1, 1), (3, 2), (1, 7), (4000, 20)]


@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize("cropped", [False, True])
def test_draw_of_any_shape_is_bounded(size, cropped):
    """With the whole picture as grid, or its middle square, as LLaVA-1.5 sees it."""
    (width, height), short = size, min(size)
    left, top = (width - short) / 2, (height - short) / 2
    crop = (left, top, left + short, top + short) if cropped else None
    tracemalloc.start()
    drawn = overlay.draw(Image.new("RGB", size, "green"), plan_of(size, crop=crop))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 720 <= drawn.width <= 2160 and 76 < drawn.height <= 2160 + 76
    assert peak < 10e6  # of Python; Pillow's own is that of the sizes above
    inks = {colour for _, colour in drawn.crop((0, 0, drawn.width, drawn.height - 76)).getcolors(10**6)}
    assert inks & {overlay.FOCUS_INK, overlay.SCAN_INK}


@pytest.mark.parametrize("side", [1, 2, 64, 300])
def test_draw_of_any_grid_has_patches_that_can_be_seen(side):
    drawn = overlay.draw(Image.new("RGB", (336, 336), "green"), plan_of((336, 336), max(3, side)))
    assert drawn.width == max(720, min(2160, 8 * max(3, side)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_draw_of_a_transparent_picture_is_on_white(mode):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    kept = overlay.Plan(rows=1, columns=1, index=[0], stage=[0], merged_into=[-1], crop=(0, 0, 8, 8))
    assert overlay.draw(picture, kept).getpixel((360, 360)) == (255, 255, 255)


def test_sheet_of_wide_drawings_has_panels_of_one_width():
    plans = [plan_of((336, 336), 200)] * 3
    drawn = overlay.sheet([Image.new("RGB", (336, 336), "green")], plans)
    assert drawn.size == (3 * 360, (1600 + 76) * 360 // 1600)


def test_main_when_metadata_are_damaged_then_drawn(tmp_path, monkeypatch, capsys):
    """What the encoder takes can be explained; what it does not take is named."""
    Image.new("RGB", (8, 6)).save(tmp_path / "scene.png")
    (tmp_path / "scene.png").write_bytes(before_pixels((tmp_path / "scene.png").read_bytes(), chunk(b"eXIf", b"junk")))
    (tmp_path / "text.png").write_bytes(b"hello")
    plan = {"views": [[0, 1, 1, [0, 0, 8, 6]]], "index": [0], "stage": [0], "merged_into": [-1]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for name in ("scene", "text"):
        arguments = [
            str(tmp_path / f"{name}.png"),
            "--plan",
            str(tmp_path / "plan.json"),
            "-o",
            str(tmp_path / "o.png"),
        ]
        monkeypatch.setattr(sys, "argv", ["overlay", *arguments])
        if name == "scene":
            overlay.main()
            with Image.open(tmp_path / "o.png") as drawn:
                assert drawn.size == (720, 540 + 76)
            continue
        with pytest.raises(SystemExit, match=r"error: .*text\.png: is no readable JPEG, PNG or WebP file"):
            overlay.main()
