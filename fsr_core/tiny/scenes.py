"""Draws the scenes that the embedded model is trained and tested on: many small coloured shapes on a cluttered picture.

A scene is a 4 x 4 board of cells. Nine to twelve cells hold one thing each, a coloured shape of random size at a random
place in the cell; most carry a digit or a letter. The background is a quilt of differently textured pieces
(`quilts.py`), with blobs and strokes that nobody asks about; some strokes run over a thing. One integer seed determines
the whole scene, so seeds and `GENERATOR_VERSION` define a set of scenes.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fsr_core.tiny.quilts import Quilt

GENERATOR_VERSION = 2
CANVAS = 432  # pixels; the checkpoint's processor scales the picture down to 144
BOARD = 4  # cells on a side
CELL = CANVAS // BOARD
COLOURS = {
    "red": (222, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 70, 230),
    "yellow": (250, 220, 20),
    "purple": (150, 40, 180),
    "cyan": (40, 210, 235),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star")
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far left", "left", "right", "far right")
DIGITS = "0123456789"
LETTERS = "ACEHKLPTXY"
MARKS = DIGITS + LETTERS
THINGS = (9, 12)  # the fewest and the most of a scene
RADII = (33.0, 42.0)  # canvas pixels
# Blobs and strokes that nobody asks about are of colours between those of the things.
_CLUTTER_COLOURS = ((235, 140, 40), (240, 130, 170), (150, 200, 70), (110, 70, 40), (245, 245, 245), (20, 20, 25))

# Seed ranges of the splits, [start, stop); no two share a seed.
SEEDS = {"train": (0, 1_000_000), "validation": (1_000_000, 1_100_000), "test": (1_100_000, 1_200_000)}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape of a scene. `centre` (x, y) and `radius` are in canvas pixels; `mark` is None, a digit or a letter."""

    shape: str
    colour: str
    row: int
    column: int
    centre: tuple[float, float]
    radius: float
    mark: str | None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    @property
    def digit(self) -> str | None:
        return self.mark if self.mark is not None and self.mark in DIGITS else None

    @property
    def letter(self) -> str | None:
        return self.mark if self.mark is not None and self.mark in LETTERS else None


@dataclass(frozen=True)
class Scene:
    """The things on a board, in reading order: nine to twelve from `make_scene`, other numbers in the hard sets."""

    seed: int
    things: tuple[Thing, ...]


def random_size_and_place(
    rng: random.Random, row: int, column: int, min_radius: float, max_radius: float
) -> tuple[float, tuple[float, float]]:
    """A random radius, and a random centre (x, y) that keeps a thing of that radius in its cell; canvas pixels."""
    radius = rng.uniform(min_radius, max_radius)
    slack = CELL / 2 - radius - 2
    x = (column + 0.5) * CELL + rng.uniform(-slack, slack)
    return radius, (x, (row + 0.5) * CELL + rng.uniform(-slack, slack))


def random_marks(rng: random.Random, count: int) -> list[str | None]:
    """Marks of `count` things, all different: about two fifths digits, two fifths letters, the rest None."""
    digits, letters = rng.sample(DIGITS, len(DIGITS)), rng.sample(LETTERS, len(LETTERS))
    marks: list[str | None] = []
    for _ in range(count):
        kinds = [kind for kind in (digits, letters) if kind]
        marks.append(rng.choice(kinds).pop() if kinds and rng.random() < 0.8 else None)
    return marks


def place_things(
    rng: random.Random, names: list[tuple[str, str]], min_radius: float, max_radius: float
) -> tuple[Thing, ...]:
    """Things of these (colour, shape), in random cells, of random sizes and with random marks; in reading order."""
    cells, marks = sorted(rng.sample(range(BOARD * BOARD), len(names))), random_marks(rng, len(names))
    things = []
    for (colour, shape), cell, mark in zip(names, cells, marks, strict=True):
        row, column = divmod(cell, BOARD)
        radius, centre = random_size_and_place(rng, row, column, min_radius, max_radius)
        things.append(
            Thing(shape=shape, colour=colour, row=row, column=column, centre=centre, radius=radius, mark=mark)
        )
    return tuple(things)


def random_names(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(colour, shape) of `count` things; some scenes lack a colour or a shape, so counts differ and `zero` occurs."""
    shapes = rng.sample(SHAPES, rng.randint(3, len(SHAPES)))
    colours = rng.sample(tuple(COLOURS), rng.randint(4, len(COLOURS)))
    return [(rng.choice(colours), rng.choice(shapes)) for _ in range(count)]


def make_scene(seed: int) -> Scene:
    """The scene of a seed. Two things may share colour, shape or both, but no mark."""
    rng = random.Random(f"scene-{GENERATOR_VERSION}-{seed}")
    return Scene(seed, place_things(rng, random_names(rng, rng.randint(*THINGS)), *RADII))


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """Corners of a shape that is not a circle, in canvas pixels."""
    (x, y), r = thing.centre, thing.radius
    if thing.shape == "square":
        half = 0.84 * r
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if thing.shape == "diamond":
        return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    if thing.shape == "triangle":
        return [(x + r * sin(2 * pi * k / 3), y - r * cos(2 * pi * k / 3)) for k in range(3)]
    radii = (r, 0.55 * r)
    return [(x + radii[k % 2] * sin(pi * k / 5), y - radii[k % 2] * cos(pi * k / 5)) for k in range(10)]


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _draw_blobs(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Rounded blobs of no shape that has a name, under the things."""
    for _ in range(rng.randint(4, 8)):
        x, y, size = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(12, 30)
        colour = rng.choice(_CLUTTER_COLOURS)
        for _ in range(3):
            dx, dy, r = rng.uniform(-size, size), rng.uniform(-size, size), rng.uniform(0.4, 0.8) * size
            pen.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=colour)


def _stroke(pen: ImageDraw.ImageDraw, rng: random.Random, middle: tuple[float, float], width: int) -> None:
    (x, y), angle, half = middle, rng.uniform(0, pi), rng.uniform(25, 70)
    dx, dy = half * cos(angle), half * sin(angle)
    pen.line((x - dx, y - dy, x + dx, y + dy), fill=rng.choice(_CLUTTER_COLOURS), width=width)


def _draw_occlusion(pen: ImageDraw.ImageDraw, rng: random.Random, thing: Thing) -> None:
    """A stroke over one side of a thing, which leaves the middle, and so the mark, free."""
    (x, y), r, angle = thing.centre, thing.radius, rng.uniform(0, 2 * pi)
    away, half = rng.uniform(0.68, 0.85) * r, rng.uniform(0.6, 1.1) * r
    mx, my, dx, dy = x + away * cos(angle), y + away * sin(angle), -half * sin(angle), half * cos(angle)
    pen.line((mx - dx, my - dy, mx + dx, my + dy), fill=rng.choice(_CLUTTER_COLOURS), width=rng.randint(5, 9))


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, shade: tuple[int, ...]) -> None:
    (x, y), r = thing.centre, thing.radius
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shade)
    else:
        pen.polygon(_outline(thing), fill=shade)
    if thing.mark is not None:
        ink = (0, 0, 0) if thing.colour in ("yellow", "cyan") else (255, 255, 255)
        down = 0.12 * r if thing.shape == "triangle" else 0  # a triangle is wider there
        pen.text((x, y + down), thing.mark, ink, _font(round(1.1 * r)), anchor="mm", stroke_width=1, stroke_fill=ink)


def draw(scene: Scene, background: np.ndarray | None = None) -> Image.Image:
    """The scene as an RGB picture of `CANVAS` x `CANVAS` pixels, always the same for a seed.

    `background` (uint8 [h, w, 3], scaled smoothly to the canvas) replaces the quilt that training uses.
    """
    rng, noise = random.Random(f"clutter-{GENERATOR_VERSION}-{scene.seed}"), np.random.default_rng(scene.seed)
    if background is None:
        background = Quilt(scene.seed).picture()
    image = Image.fromarray(background).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    _draw_blobs(pen, rng)
    for _ in range(rng.randint(4, 8)):
        _stroke(pen, rng, (rng.uniform(0, CANVAS), rng.uniform(0, CANVAS)), rng.randint(4, 9))
    for thing in scene.things:
        shade = tuple(int(c) for c in np.clip(np.array(COLOURS[thing.colour]) + noise.normal(0, 9, 3), 0, 255))
        _draw_thing(pen, thing, shade)
        if rng.random() < 0.25:
            _draw_occlusion(pen, rng, thing)
    return image.filter(ImageFilter.GaussianBlur(0.6))


def scene_png(seed: int) -> bytes:
    """The picture of a seed's scene, as a PNG file."""
    file = io.BytesIO()
    draw(make_scene(seed)).save(file, "PNG")
    return file.getvalue()


def patch_owner(scene: Scene, grid: int = 12) -> np.ndarray:
    """The thing that covers each patch: int array [grid, grid] of indices into `things`, -1 for the background.

    A thing covers the patches whose middle lies well within it, and always the one that holds its own centre.
    """
    owner = np.full((grid, grid), -1, dtype=np.int64)
    centres = (np.arange(grid) + 0.5) * CANVAS / grid
    for index, thing in enumerate(scene.things):
        (x, y), reach = thing.centre, 0.85 * thing.radius
        owner[(centres[None, :] - x) ** 2 + (centres[:, None] - y) ** 2 <= reach**2] = index
        owner[centre_patch(thing, grid)] = index
    return owner


def centre_patch(thing: Thing, grid: int = 12) -> tuple[int, int]:
    """Row and column of the patch that holds a thing's centre."""
    x, y = thing.centre
    return int(y * grid / CANVAS), int(x * grid / CANVAS)
