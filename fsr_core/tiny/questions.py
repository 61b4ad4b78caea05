"""Questions about a scene with one right answer each, and how an answer is judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fsr_core.tiny.scenes import COLOURS, SEEDS, SHAPES, Scene, Thing, make_scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Question:
    """`things` are the indices of the things that the question names, the evidence one must look at."""

    kind: str
    text: str
    answer: str
    things: tuple[int, ...]


def _unique(things: tuple[Thing, ...], key: str) -> list[int]:
    values = [getattr(thing, key) for thing in things]
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _colour(scene: Scene, rng: random.Random) -> Question | None:
    choices = _unique(scene.things, "shape")
    if not choices:
        return None
    i = rng.choice(choices)
    return Question("colour", f"What colour is the {scene.things[i].shape}?", scene.things[i].colour, (i,))


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    choices = _unique(scene.things, "colour")
    if not choices:
        return None
    i = rng.choice(choices)
    return Question("shape", f"What shape is {scene.things[i].colour}?", scene.things[i].shape, (i,))


def _existence(scene: Scene, rng: random.Random) -> Question:
    names = {thing.name for thing in scene.things}
    if rng.random() < 0.5:
        name = rng.choice(sorted(names))
    else:
        # Half of the absent ones are hard: their colour and their shape are both there, on different things.
        seen = [f"{a.colour} {b.shape}" for a in scene.things for b in scene.things]
        every = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        pool = sorted(set(seen) - names) if rng.random() < 0.5 else []
        name = rng.choice(pool or sorted(set(every) - names))
    hits = tuple(i for i, thing in enumerate(scene.things) if thing.name == name)
    return Question("existence", f"Is there a {name}?", "yes" if hits else "no", hits)


def _count(scene: Scene, rng: random.Random) -> Question:
    options: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for key, values, plural in (("shape", SHAPES, "{}s"), ("colour", tuple(COLOURS), "{} shapes")):
        for value in values:
            hits = tuple(i for i, thing in enumerate(scene.things) if getattr(thing, key) == value)
            options.setdefault(len(hits), []).append((plural.format(value), hits))
    number = rng.choice(sorted(options))  # every number that occurs is as likely as the others
    what, hits = rng.choice(options[number])
    return Question("count", f"How many {what} are there?", NUMBERS[number], hits)


def _where(scene: Scene, rng: random.Random) -> Question | None:
    choices = _unique(scene.things, "name")
    if not choices:
        return None
    i = rng.choice(choices)
    return Question("where", f"Where is the {scene.things[i].name}?", scene.things[i].place, (i,))


def _beside(scene: Scene, rng: random.Random, side: str) -> Question | None:
    """The nearest thing in the same row; asked only where there is one."""
    choices = []
    for i in _unique(scene.things, "name"):
        me = scene.things[i]
        row = [(abs(t.column - me.column), j) for j, t in enumerate(scene.things) if t.row == me.row and j != i]
        found = [(d, j) for d, j in row if (scene.things[j].column < me.column) == (side == "left")]
        if found:
            choices.append((i, min(found)[1]))
    if not choices:
        return None
    i, j = rng.choice(choices)
    text = f"What is {side} of the {scene.things[i].name}?"
    return Question(side, text, scene.things[j].name, (i,))


def _digit(scene: Scene, rng: random.Random) -> Question | None:
    choices = [i for i in _unique(scene.things, "name") if scene.things[i].digit is not None]
    if not choices:
        return None
    i = rng.choice(choices)
    thing = scene.things[i]
    return Question("digit", f"Which digit is on the {thing.name}?", NUMBERS[thing.digit or 0], (i,))


KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "existence": _existence,
    "shape": _shape,
    "colour": _colour,
    "where": _where,
    "digit": _digit,
    "count": _count,
    "left": partial(_beside, side="left"),
    "right": partial(_beside, side="right"),
}


def random_question(scene: Scene, rng: random.Random, kinds: tuple[str, ...] = tuple(KINDS)) -> Question:
    """One question of a random kind among `kinds` that the scene can answer without ambiguity."""
    for kind in rng.sample(kinds, len(kinds)):
        question = KINDS[kind](scene, rng)
        if question is not None:
            return question
    return _existence(scene, rng)


def frozen_questions(split: str, count: int) -> list[tuple[Scene, Question]]:
    """The first `count` questions of a split, one a scene, its kinds in turn so that each is asked equally often."""
    try:
        return in_turn(range(*SEEDS[split]), make_scene, tuple(KINDS), count)
    except ValueError as error:
        raise ValueError(f"count: the {split} split holds fewer than {count} questions; ask for fewer") from error


def in_turn(
    seeds: range, make: Callable[[int], Scene], kinds: tuple[str, ...], count: int
) -> list[tuple[Scene, Question]]:
    """`count` questions about the scenes that `make` gives for `seeds`, one a scene, the `kinds` one after another.

    A scene that cannot be asked the kind whose turn it is is passed over. ValueError where the seeds do not suffice.
    """
    items: list[tuple[Scene, Question]] = []
    for seed in seeds:
        scene = make(seed)
        question = KINDS[kinds[len(items) % len(kinds)]](scene, random.Random(f"question-{seed}"))
        if question is not None:
            items.append((scene, question))
        if len(items) == count:
            return items
    raise ValueError(f"count: {len(seeds)} seeds give {len(items)} questions, fewer than {count}; ask for fewer")


def is_correct(question: Question, answer: str) -> bool:
    """Exact match, but for case, outer white space and a closing full stop."""
    return answer.strip().rstrip(".").lower() == question.answer
