"""Four frozen sets that are harder than the test set.

crowded      fourteen things on the board of sixteen cells; training has twelve at most
distractors  eight of the nine pairs of three colours and three shapes: each thing shares both with others
tiny         things of two thirds of the size, about one and a half patches across
shifted      backgrounds that training never drew, and things that are smaller or larger

Like the other sets, each is defined by its seeds and `GENERATOR_VERSION`; `hard_sets.json` is the record of what they
must give. After a new version, write a new record: `python -m fsr_core.tiny.hard_sets`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fsr_core.tiny import scenes
from fsr_core.tiny.questions import KINDS, Question, questions_in_turn
from fsr_core.tiny.scenes import COLOURS, GENERATOR_VERSION, RADII, SHAPES, THINGS, Scene, Thing
from fsr_core.tiny.test_set import compare, record

__all__ = ["HARD_SETS", "HardSet", "draw", "frozen_hard_set", "verify"]

RECORD = Path(__file__).parent / "hard_sets.json"


def _random_things(rng: random.Random, count: int, min_radius: float, max_radius: float) -> tuple[Thing, ...]:
    """`count` things whose shapes and colours are chosen as in training."""
    return scenes.place_things(rng, scenes.random_names(rng, count), min_radius, max_radius)


def _crowded(rng: random.Random) -> tuple[Thing, ...]:
    return _random_things(rng, 14, *RADII)


def _distractors(rng: random.Random) -> tuple[Thing, ...]:
    colours, shapes = rng.sample(tuple(COLOURS), 3), rng.sample(SHAPES, 3)
    names = [(colour, shape) for colour in colours for shape in shapes]
    # The ninth pair is an absent thing whose colour and shape are both there.
    return scenes.place_things(rng, rng.sample(names, 8), *RADII)


def _tiny(rng: random.Random) -> tuple[Thing, ...]:
    return _random_things(rng, rng.randint(*THINGS), 22, 28)


def _shifted(rng: random.Random) -> tuple[Thing, ...]:
    min_radius, max_radius = rng.choice([(29, 32), (44, 48)])
    return _random_things(rng, rng.randint(*THINGS), min_radius, max_radius)


def _background(seed: int) -> np.ndarray:
    """A background unlike those of training: paper, night, stripes or a ramp, uint8 [27, 27, 3].

    Only whole numbers are computed, so the result is the same on any machine.
    """
    rng = np.random.default_rng(seed)
    style = seed % 4
    base = int(rng.integers(*((205, 236) if style == 0 else (12, 50))))
    if style in (0, 1):
        return (base + rng.integers(-10, 11, (27, 27, 3))).astype(np.uint8)
    other = base + int(rng.integers(60, 140))
    steps = np.arange(27)
    mix = steps // 3 % 2 * 26 if style == 2 else steps
    line = (base * (26 - mix) + other * mix) // 26
    tint = rng.integers(-12, 13, 3)
    plane = np.broadcast_to(line[None, :, None] if rng.integers(2) else line[:, None, None], (27, 27, 3))
    return (plane + tint).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class HardSet:
    """How one set is made: its seeds, its number of questions, their kinds, and how things are placed."""

    seeds: range
    questions: int
    kinds: tuple[str, ...]
    things: Callable[[random.Random], tuple[Thing, ...]]


_ALL_KINDS = tuple(KINDS)
HARD_SETS = {
    "crowded": HardSet(range(1_200_000, 1_300_000), 1024, _ALL_KINDS, _crowded),
    "distractors": HardSet(range(1_300_000, 1_400_000), 1024, _ALL_KINDS, _distractors),
    "tiny": HardSet(range(1_400_000, 1_500_000), 1024, _ALL_KINDS, _tiny),
    "shifted": HardSet(range(1_500_000, 1_600_000), 1024, _ALL_KINDS, _shifted),
}


def _make_scene(name: str, seed: int) -> Scene:
    rng = random.Random(f"{name}-{GENERATOR_VERSION}-{seed}")
    return Scene(seed, HARD_SETS[name].things(rng))


def frozen_hard_set(name: str, limit: int | None = None) -> list[tuple[Scene, Question]]:
    """The first `limit` questions of a set (by default all), each with its scene.

    Raises:
        ValueError: there is no such set, or `limit` is not within 1 and the set's size.
    """
    if name not in HARD_SETS:
        raise ValueError(f"set: {name!r} is unknown; choose one of {', '.join(HARD_SETS)}")
    hard_set = HARD_SETS[name]
    limit = hard_set.questions if limit is None else limit
    if not 1 <= limit <= hard_set.questions:
        raise ValueError(f"limit = {limit} is outside the set {name!r}; give 1 to {hard_set.questions}")
    return questions_in_turn(hard_set.seeds, lambda seed: _make_scene(name, seed), hard_set.kinds, limit)


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene of any set. The scene's seed tells the set, and so the kind of background."""
    return scenes.draw(scene, _background(scene.seed) if scene.seed in HARD_SETS["shifted"].seeds else None)


def _record(name: str, items: list[tuple[Scene, Question]]) -> dict[str, object]:
    result = record(items, draw)
    if name == "shifted":
        backgrounds = b"".join(_background(scene.seed).tobytes() for scene, _ in items)
        result["sha256_backgrounds"] = hashlib.sha256(backgrounds).hexdigest()
    return result


def verify(name: str, items: list[tuple[Scene, Question]]) -> None:
    """Checks a whole set against the stored record.

    Raises:
        ValueError: this is not the set on which the published figures were measured.
    """
    compare(_record(name, items), json.loads(RECORD.read_text())[name], f"set {name!r}", RECORD.name)


def main(arguments: list[str] | None = None) -> None:
    """Writes the record of the sets as the generator gives them now."""
    parser = argparse.ArgumentParser(
        prog="python -m fsr_core.tiny.hard_sets",
        description=f"Writes {RECORD.name} anew. Do this only together with a new GENERATOR_VERSION.",
    )
    parser.parse_args(arguments)
    RECORD.write_text(json.dumps({name: _record(name, frozen_hard_set(name)) for name in HARD_SETS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
