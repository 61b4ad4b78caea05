"""Questions about a scene, each with one right answer, and the check of an answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from fsr_core.tiny.scenes import COLOURS, SEEDS, SHAPES, Scene, Thing, make_scene

MOST_COUNTED = 4  # no question asks for a larger number

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Question:
    """A question and its right answer. `things` are the indices of the things that the question names: the evidence."""

    kind: str
    text: str
    answer: str
    things: tuple[int, ...]


def _unique(things: tuple[Thing, ...], attribute: str) -> list[int]:
    """Indices of the things that share this attribute with no other thing."""
    values = [getattr(thing, attribute) for thing in things]
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _one_thing(
    scene: Scene,
    rng: random.Random,
    *,
    kind: str,
    texts: dict[str, str],
    answer: Callable[[Thing], str | None],
) -> Question | None:
    """A question about one thing, named by an attribute that no other thing shares.

    `texts` has a text for each attribute that may name it, in which `{}` stands for the attribute; they are equally
    likely if the scene has a thing for each. Gives None if no thing has both such an attribute and an `answer`.
    """
    options = []
    for named_by, text in texts.items():
        things = [(i, scene.things[i]) for i in _unique(scene.things, named_by)]
        known = [(i, thing) for i, thing in things if getattr(thing, named_by) is not None]
        choices = [(i, text.format(getattr(thing, named_by)), answer(thing)) for i, thing in known]
        options.append([(i, asked, right) for i, asked, right in choices if right is not None])
    options = [choices for choices in options if choices]
    if not options:
        return None
    index, asked, right = rng.choice(rng.choice(options))
    return Question(kind, asked, right, (index,))


def _existence(scene: Scene, rng: random.Random) -> Question:
    names = {thing.name for thing in scene.things}
    if rng.random() < 0.5:
        name = rng.choice(sorted(names))
    else:
        # Half of the absent names are hard: their colour and their shape are both there, on different things.
        mixed = {f"{a.colour} {b.shape}" for a in scene.things for b in scene.things}
        every = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
        hard = sorted(mixed - names) if rng.random() < 0.5 else []
        name = rng.choice(hard or sorted(every - names))
    things = tuple(i for i, thing in enumerate(scene.things) if thing.name == name)
    return Question("existence", f"Is there a {name}?", "yes" if things else "no", things)


def _count(scene: Scene, rng: random.Random) -> Question | None:
    options: dict[int, list[tuple[str, tuple[int, ...]]]] = {}  # by the number of things
    for attribute, values, plural in (("shape", SHAPES, "{}s"), ("colour", tuple(COLOURS), "{} shapes")):
        for value in values:
            things = tuple(i for i, thing in enumerate(scene.things) if getattr(thing, attribute) == value)
            if len(things) <= MOST_COUNTED:
                options.setdefault(len(things), []).append((plural.format(value), things))
    if not options:
        return None
    number = rng.choice(sorted(options))  # every number that occurs is equally likely
    name, things = rng.choice(options[number])
    return Question("count", f"How many {name} are there?", NUMBERS[number], things)


# Relation -> the coordinate of the board that it compares, and whether the first thing's is the smaller one.
RELATIONS = {
    "left of": ("column", True),
    "right of": ("column", False),
    "above": ("row", True),
    "below": ("row", False),
}


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    """Asks how two things lie to each other; half of the answers are yes. Both have names that no other thing has."""
    relation = rng.choice(sorted(RELATIONS))
    axis, smaller_first = RELATIONS[relation]
    unique = _unique(scene.things, "name")
    pairs = [(i, j) for i in unique for j in unique if getattr(scene.things[i], axis) < getattr(scene.things[j], axis)]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    holds = rng.random() < 0.5
    first, second = (i, j) if smaller_first == holds else (j, i)
    text = f"Is the {scene.things[first].name} {relation} the {scene.things[second].name}?"
    return Question("relation", text, "yes" if holds else "no", (first, second))


# The order is part of the frozen sets: they ask the kinds in turn.
KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "existence": _existence,
    "shape": partial(
        _one_thing,
        kind="shape",
        texts={"mark": "What shape is marked {}?", "colour": "What shape is {}?"},
        answer=attrgetter("shape"),
    ),
    "colour": partial(
        _one_thing,
        kind="colour",
        texts={"mark": "What colour is the shape marked {}?", "shape": "What colour is the {}?"},
        answer=attrgetter("colour"),
    ),
    "where": partial(_one_thing, kind="where", texts={"name": "Where is the {}?"}, answer=attrgetter("place")),
    "digit": partial(_one_thing, kind="digit", texts={"name": "Which digit is on the {}?"}, answer=attrgetter("digit")),
    "letter": partial(
        _one_thing, kind="letter", texts={"name": "Which letter is on the {}?"}, answer=attrgetter("letter")
    ),
    "relation": _relation,
    "count": _count,
}


def random_question(scene: Scene, rng: random.Random, kinds: tuple[str, ...] = tuple(KINDS)) -> Question:
    """A question of a random kind among `kinds`; about existence if the scene can answer none of them."""
    for kind in rng.sample(kinds, len(kinds)):
        question = KINDS[kind](scene, rng)
        if question is not None:
            return question
    return _existence(scene, rng)


def frozen_questions(split: str, count: int) -> list[tuple[Scene, Question]]:
    """The first `count` questions of a split, one a scene. The kinds take turns, so each is asked equally often.

    Raises:
        ValueError: the split holds fewer questions.
    """
    try:
        return questions_in_turn(range(*SEEDS[split]), make_scene, tuple(KINDS), count)
    except ValueError as error:
        raise ValueError(f"count: the {split} split holds fewer than {count} questions; ask for fewer") from error


def questions_in_turn(
    seeds: range, make: Callable[[int], Scene], kinds: tuple[str, ...], count: int
) -> list[tuple[Scene, Question]]:
    """`count` questions, one a scene, of the `kinds` in turn. `make` gives the scene of each of the `seeds`.

    A scene is skipped if it cannot answer the kind that is next.

    Raises:
        ValueError: the seeds give fewer questions.
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
    """Whether an answer matches exactly, apart from case, outer white space and a final full stop."""
    return answer.strip().rstrip(".").lower() == question.answer.lower()
