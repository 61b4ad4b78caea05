"""Four sets that are harder than the test set, frozen as it is: three harder in kind, one drawn otherwise.

crowded      nine things on the board, more than the smallest budget has tokens; training has six at most
distractors  two colours by three shapes, five of the six: every thing shares its colour, all but one their shape
tiny         things of half the size, about one patch across
shifted      backgrounds and sizes that training never drew

A set is its seeds and `GENERATOR_VERSION`, like the others; `hard_sets.json` holds what they must give. To write that
record anew, after a new version: `python -m fsr_core.tiny.hard_sets`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fsr_core.tiny import scenes
from fsr_core.tiny.questions import KINDS, Question, in_turn
from fsr_core.tiny.scenes import COLOURS, GENERATOR_VERSION, MAX_DIGIT, SHAPES, Scene, Thing
from fsr_core.tiny.test_set import compare, record

__all__ = ["HARD_SETS", "draw", "frozen_hard_set", "verify"]

RECORD = Path(__file__).parent / "hard_sets.json"


def _thing(rng: random.Random, name: tuple[str, str], cell: int, least: float, most: float) -> Thing:
    row, column = divmod(cell, 3)
    radius, centre = scenes.place(rng, row, column, least, most)
    digit = rng.randint(0, MAX_DIGIT) if rng.random() < 0.5 else None
    return Thing(name[1], name[0], row, column, centre, radius, digit)


def _ordinary(rng: random.Random, count: int, least: float, most: float) -> list[Thing]:
    """Things as training has them (a random sub-palette), but as many and as large as is asked."""
    shapes = rng.sample(SHAPES, rng.randint(2, len(SHAPES)))
    colours = rng.sample(tuple(COLOURS), rng.randint(2, len(COLOURS)))
    cells = sorted(rng.sample(range(9), count))
    return [_thing(rng, (rng.choice(colours), rng.choice(shapes)), cell, least, most) for cell in cells]


def _crowded(rng: random.Random) -> list[Thing]:
    return _ordinary(rng, 9, 38, 58)


def _distractors(rng: random.Random) -> list[Thing]:
    colours, shapes = rng.sample(tuple(COLOURS), 2), rng.sample(SHAPES, 3)
    names = [(colour, shape) for colour in colours for shape in shapes]
    # Five of the six pairs: the sixth is the absent thing of which everything is there.
    names = rng.sample(names, 5)
    return [_thing(rng, name, cell, 38, 58) for name, cell in zip(names, sorted(rng.sample(range(9), 5)), strict=True)]


def _tiny(rng: random.Random) -> list[Thing]:
    return _ordinary(rng, rng.randint(3, 6), 18, 26)


def _shifted(rng: random.Random) -> list[Thing]:
    least, most = rng.choice([(29, 36), (60, 66)])
    return _ordinary(rng, rng.randint(3, 6), least, most)


def _ground(seed: int) -> np.ndarray:
    """A background outside of training: paper, night, stripes or a ramp. Whole numbers, the same on any machine."""
    dice = np.random.default_rng(seed)
    style = seed % 4
    base = int(dice.integers(*((205, 236) if style == 0 else (12, 50))))
    if style in (0, 1):
        return (base + dice.integers(-10, 11, (27, 27, 3))).astype(np.uint8)
    other = base + int(dice.integers(60, 140))
    steps = np.arange(27)
    mix = steps // 3 % 2 * 26 if style == 2 else steps
    line = (base * (26 - mix) + other * mix) // 26
    tint = dice.integers(-12, 13, 3)
    plane = np.broadcast_to(line[None, :, None] if dice.integers(2) else line[:, None, None], (27, 27, 3))
    return (plane + tint).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class HardSet:
    """How one set is made: its seeds, how many questions, of which kinds, and its things."""

    seeds: range
    questions: int
    kinds: tuple[str, ...]
    things: Callable[[random.Random], list[Thing]]


_ALL = tuple(KINDS)
# Where every colour and every shape is there twice, neither can name a thing by itself.
_BY_NAME = tuple(kind for kind in KINDS if kind not in ("colour", "shape"))
HARD_SETS = {
    "crowded": HardSet(range(1_200_000, 1_300_000), 1024, _ALL, _crowded),
    "distractors": HardSet(range(1_300_000, 1_400_000), 1020, _BY_NAME, _distractors),
    "tiny": HardSet(range(1_400_000, 1_500_000), 1024, _ALL, _tiny),
    "shifted": HardSet(range(1_500_000, 1_600_000), 1024, _ALL, _shifted),
}


def _scene(name: str, seed: int) -> Scene:
    rng = random.Random(f"{name}-{GENERATOR_VERSION}-{seed}")
    return Scene(seed, tuple(HARD_SETS[name].things(rng)))


def frozen_hard_set(name: str, limit: int | None = None) -> list[tuple[Scene, Question]]:
    """The first `limit` questions of a set (all without it), each with its scene.

    Raises:
        ValueError: there is no such set, or `limit` is outside of it.
    """
    if name not in HARD_SETS:
        raise ValueError(f"set: {name!r} is unknown; choose one of {', '.join(HARD_SETS)}")
    one = HARD_SETS[name]
    limit = one.questions if limit is None else limit
    if not 1 <= limit <= one.questions:
        raise ValueError(f"limit = {limit} is outside the set {name!r}; give 1 to {one.questions}")
    return in_turn(one.seeds, lambda seed: _scene(name, seed), one.kinds, limit)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene of any set; its seed says which set it is of, and so how it is drawn."""
    return scenes.draw(scene, _ground(scene.seed) if scene.seed in HARD_SETS["shifted"].seeds else None)


def _record(name: str, items: list[tuple[Scene, Question]]) -> dict[str, object]:
    found = record(items, draw)
    if name == "shifted":
        grounds = b"".join(_ground(scene.seed).tobytes() for scene, _ in items)
        found["sha256_backgrounds"] = hashlib.sha256(grounds).hexdigest()
    return found


def verify(name: str, items: list[tuple[Scene, Question]]) -> None:
    """Check a whole set against the stored record.

    Raises:
        ValueError: the generator no longer gives the set on which the published figures were measured.
    """
    compare(_record(name, items), json.loads(RECORD.read_text())[name], f"set {name!r}", RECORD.name)


if __name__ == "__main__":
    RECORD.write_text(json.dumps({name: _record(name, frozen_hard_set(name)) for name in HARD_SETS}, indent=2) + "\n")
