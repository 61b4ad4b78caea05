"""Draws the scenes that the embedded model is trained and tested on: coloured shapes, some with a digit.

A scene is a 3 x 3 board of cells on a noisy background. An occupied cell holds one shape, jittered in place and
size. Everything follows from one integer seed, so a set of scenes is its seeds and `GENERATOR_VERSION`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

GENERATOR_VERSION = 1
CANVAS = 432  # pixels; the checkpoint's processor scales it down to 144
CELL = CANVAS // 3
COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "cyan": (60, 200, 220),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
MAX_DIGIT = 9

# Disjoint seed ranges: [start, stop).
SEEDS = {"train": (0, 1_000_000), "validation": (1_000_000, 1_100_000), "test": (1_100_000, 1_200_000)}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene. `centre` and `radius` are in canvas pixels; `digit` is None or 0..9."""

    shape: str
    colour: str
    row: int
    column: int
    centre: tuple[float, float]
    radius: float
    digit: int | None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Scene:
    """Three to six things on a board, in reading order."""

    seed: int
    things: tuple[Thing, ...]


def place(rng: random.Random, row: int, column: int, least: float, most: float) -> tuple[float, tuple[float, float]]:
    """A radius within least..most and a centre that keeps a thing of that radius in its cell, canvas pixels."""
    radius = rng.uniform(least, most)
    slack = CELL / 2 - radius - 4
    x = (column + 0.5) * CELL + rng.uniform(-slack, slack)
    return radius, (x, (row + 0.5) * CELL + rng.uniform(-slack, slack))


def make_scene(seed: int) -> Scene:
    """The scene of a seed. Two things may share a colour or a shape, and may be look-alikes."""
    rng = random.Random(f"scene-{GENERATOR_VERSION}-{seed}")
    cells = sorted(rng.sample(range(9), rng.randint(3, 6)))
    # A random sub-palette makes repeats common enough for counts of two, three and four.
    shapes = rng.sample(SHAPES, rng.randint(2, len(SHAPES)))
    colours = rng.sample(tuple(COLOURS), rng.randint(2, len(COLOURS)))
    things = []
    for cell in cells:
        row, column = divmod(cell, 3)
        radius, centre = place(rng, row, column, 38, 58)
        digit = rng.randint(0, MAX_DIGIT) if rng.random() < 0.5 else None
        things.append(Thing(rng.choice(shapes), rng.choice(colours), row, column, centre, radius, digit))
    return Scene(seed, tuple(things))


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
    radii = (r, 0.5 * r)
    return [(x + radii[k % 2] * sin(pi * k / 5), y - radii[k % 2] * cos(pi * k / 5)) for k in range(10)]


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def draw(scene: Scene, ground: np.ndarray | None = None) -> Image.Image:
    """The scene as an RGB picture of `CANVAS` x `CANVAS` pixels, the same for the same seed.

    `ground` is another background than the trained one, uint8 [h, w, 3], smoothed to the canvas.
    """
    noise = np.random.default_rng(scene.seed)
    if ground is None:
        base = noise.integers(70, 190)
        ground = (base + noise.normal(0, 22, (27, 27, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(ground).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        shade = tuple(int(c) for c in np.clip(np.array(COLOURS[thing.colour]) + noise.normal(0, 9, 3), 0, 255))
        (x, y), r = thing.centre, thing.radius
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=shade)
        else:
            pen.polygon(_outline(thing), fill=shade)
        if thing.digit is not None:
            ink = (0, 0, 0) if thing.colour in ("yellow", "cyan") else (255, 255, 255)
            font = _font(round(1.05 * r))
            pen.text((x, y + (0.12 * r if thing.shape == "triangle" else 0)), str(thing.digit), ink, font, anchor="mm")
    return image.filter(ImageFilter.GaussianBlur(0.6))


def patch_owner(scene: Scene, grid: int = 12) -> np.ndarray:
    """Which thing covers each patch: int array [grid, grid], -1 for background, else an index into `things`."""
    owner = np.full((grid, grid), -1, dtype=np.int64)
    size = CANVAS / grid
    middles = (np.arange(grid) + 0.5) * size
    for index, thing in enumerate(scene.things):
        (x, y), reach = thing.centre, 0.85 * thing.radius
        near = (middles[None, :] - x) ** 2 + (middles[:, None] - y) ** 2 <= reach**2
        owner[near] = index
    return owner
