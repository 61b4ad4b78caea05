"""A seed gives one scene and one picture, and the picture shows what the scene describes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fsr_core.tiny import __main__ as command
from fsr_core.tiny.quilts import TEXTURES, TINTS, Quilt
from fsr_core.tiny.scenes import BOARD, CANVAS, CELL, COLOURS, MARKS, SEEDS, draw, make_scene, patch_owner, scene_png

SOME_SEEDS = range(40)


def test_splits_share_no_seed() -> None:
    ranges = sorted(SEEDS.values())
    assert set(SEEDS) == {"train", "validation", "test"}
    assert all(start < stop for start, stop in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


def test_same_seed_gives_the_same_picture() -> None:
    assert make_scene(7) == make_scene(7)
    assert draw(make_scene(7)).tobytes() == draw(make_scene(7)).tobytes()
    assert draw(make_scene(7)).tobytes() != draw(make_scene(8)).tobytes()


def test_scene_png_is_the_drawn_picture() -> None:
    with Image.open(io.BytesIO(scene_png(7))) as image:
        assert image.format == "PNG" and image.tobytes() == draw(make_scene(7)).tobytes()


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_things_lie_in_their_cells(seed: int) -> None:
    things = make_scene(seed).things
    assert 9 <= len(things) <= 12
    assert len({(t.row, t.column) for t in things}) == len(things)
    marks = [t.mark for t in things if t.mark is not None]
    assert len(set(marks)) == len(marks) and set(marks) <= set(MARKS)
    for thing in things:
        x, y = thing.centre
        assert thing.column * CELL <= x - thing.radius < x + thing.radius <= (thing.column + 1) * CELL
        assert thing.row * CELL <= y - thing.radius < y + thing.radius <= (thing.row + 1) * CELL


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_picture_has_each_things_colour_at_its_place(seed: int) -> None:
    scene = make_scene(seed)
    pixels = np.asarray(draw(scene)).astype(int)
    assert pixels.shape == (CANVAS, CANVAS, 3)
    palette = np.array(list(COLOURS.values()))
    for thing in scene.things:
        # These spots are inside every shape, and most of them are beside the mark.
        (x, y), away = thing.centre, 0.42 * thing.radius
        spots = [pixels[int(y + dy), int(x + dx)] for dx in (-away, 0, away) for dy in (-6, 0, 6)]
        nearest = [list(COLOURS)[int(((palette - spot) ** 2).sum(1).argmin())] for spot in spots]
        assert nearest.count(thing.colour) >= 2


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_patch_owner_gives_every_thing_patches_in_its_cell(seed: int) -> None:
    scene = make_scene(seed)
    owner = patch_owner(scene)
    assert owner.shape == (12, 12)
    assert set(owner.flatten()) == {-1, *range(len(scene.things))}
    for index, thing in enumerate(scene.things):
        rows, columns = np.nonzero(owner == index)
        assert set(rows * BOARD // 12) == {thing.row}
        assert set(columns * BOARD // 12) == {thing.column}


def test_quilt_has_many_pieces_that_differ() -> None:
    for seed in SOME_SEEDS:
        tint, texture = Quilt(seed).patches()
        assert tint.shape == texture.shape == (12, 12)
        assert set(tint.flatten()) <= set(range(len(TINTS))) and set(texture.flatten()) <= set(range(len(TEXTURES)))
        assert len(set(zip(tint.flatten(), texture.flatten(), strict=True))) >= 6
    picture = Quilt(3).picture()
    assert picture.shape == (144, 144, 3) and (picture == Quilt(3).picture()).all()
    cells = picture.reshape(12, 12, 12, 12, 3).mean((1, 3))
    assert cells.std((0, 1)).min() > 20  # from 0 to 255; a plain noise has less than 10


def test_command_imports_no_torch() -> None:
    code = "import sys, fsr_core.tiny.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_command_writes_picture_and_questions(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "scene.png"
    command.main(["-o", str(target), "--seed", "1100003", "--json"])
    output = json.loads(capsys.readouterr().out)
    with Image.open(target) as image:
        assert image.tobytes() == draw(make_scene(1_100_003)).tobytes()
    assert output["seed"] == 1_100_003
    assert {"kind", "question", "answer"} == set(output["questions"][0])


@pytest.mark.parametrize("wrong", [["-o", "x.png", "--seed", "-1"], ["-o", "/no/such/folder/x.png"], []])
def test_command_with_a_wrong_option_reports_an_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(wrong)
    assert stop.value.code != 0
    assert "error" in capsys.readouterr().err
