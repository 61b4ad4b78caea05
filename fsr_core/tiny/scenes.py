"""Draws the scenes that the embedded model is trained and tested on: coloured shapes, some with a digit.

A scene is a 3 x 3 board of cells on a noisy background. An occupied cell holds one shape of random size, at a random
place in the cell. One integer seed determines the whole scene, so seeds and `GENERATOR_VERSION` define a set of scenes.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

GENERATOR_VERSION = 1
CANVAS = 432  # pixels; the checkpoint's processor scales the picture down to 144
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

# Seed ranges of the splits, [start, stop); no two share a seed.
SEEDS = {"train": (0, 1_000_000), "validation": (1_000_000, 1_100_000), "test": (1_100_000, 1_200_000)}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape of a scene. `centre` (x, y) and `radius` are in canvas pixels; `digit` is None or 0..9."""

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
    """The things on a board, in reading order: three to six from `make_scene`, up to nine in the hard sets."""

    seed: int
    things: tuple[Thing, ...]


def random_size_and_place(
    rng: random.Random, row: int, column: int, min_radius: float, max_radius: float
) -> tuple[float, tuple[float, float]]:
    """A random radius, and a random centre (x, y) that keeps a thing of that radius in its cell; canvas pixels."""
    radius = rng.uniform(min_radius, max_radius)
    slack = CELL / 2 - radius - 4
    x = (column + 0.5) * CELL + rng.uniform(-slack, slack)
    return radius, (x, (row + 0.5) * CELL + rng.uniform(-slack, slack))


def make_scene(seed: int) -> Scene:
    """The scene of a seed. Two things may share colour, shape or both."""
    rng = random.Random(f"scene-{GENERATOR_VERSION}-{seed}")
    cells = sorted(rng.sample(range(9), rng.randint(3, 6)))
    # A random part of the shapes and colours makes repeats common enough for counts of two, three and four.
    shapes = rng.sample(SHAPES, rng.randint(2, len(SHAPES)))
    colours = rng.sample(tuple(COLOURS), rng.randint(2, len(COLOURS)))
    things = []
    for cell in cells:
        row, column = divmod(cell, 3)
        radius, centre = random_size_and_place(rng, row, column, 38, 58)
        digit = rng.randint(0, MAX_DIGIT) if rng.random() < 0.5 else None
        shape, colour = rng.choice(shapes), rng.choice(colours)
        things.append(
            Thing(shape=shape, colour=colour, row=row, column=column, centre=centre, radius=radius, digit=digit)
        )
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


def draw(scene: Scene, background: np.ndarray | None = None) -> Image.Image:
    """The scene as an RGB picture of `CANVAS` x `CANVAS` pixels, always the same for a seed.

    `background` (uint8 [h, w, 3], scaled smoothly to the canvas) replaces the noise that training uses.
    """
    noise = np.random.default_rng(scene.seed)
    if background is None:
        base = noise.integers(70, 190)
        background = (base + noise.normal(0, 22, (27, 27, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(background).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
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
            down = 0.12 * r if thing.shape == "triangle" else 0  # a triangle is wider there
            pen.text((x, y + down), str(thing.digit), ink, font, anchor="mm")
    return image.filter(ImageFilter.GaussianBlur(0.6))


def scene_png(seed: int) -> bytes:
    """The picture of a seed's scene, as a PNG file."""
    file = io.BytesIO()
    draw(make_scene(seed)).save(file, "PNG")
    return file.getvalue()


def patch_owner(scene: Scene, grid: int = 12) -> np.ndarray:
    """The thing that covers each patch: int array [grid, grid] of indices into `things`, -1 for the background."""
    owner = np.full((grid, grid), -1, dtype=np.int64)
    centres = (np.arange(grid) + 0.5) * CANVAS / grid
    for index, thing in enumerate(scene.things):
        (x, y), reach = thing.centre, 0.85 * thing.radius
        owner[(centres[None, :] - x) ** 2 + (centres[:, None] - y) ** 2 <= reach**2] = index
    return owner
