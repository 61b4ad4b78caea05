"""Each question has exactly one right answer; these tests find it in the scene by other means."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from fsr_core.tiny.questions import KINDS, NUMBERS, Question, frozen_questions, is_correct, random_question
from fsr_core.tiny.scenes import CELL, SEEDS, Scene, make_scene


def solve(scene: Scene, text: str) -> list[str]:
    """Every answer that fits the scene, match from the question's words alone."""
    things = scene.things
    if match := re.fullmatch(r"What colour is the shape marked (\w)\?", text):
        return [t.colour for t in things if t.mark == match[1]]
    if match := re.fullmatch(r"What colour is the (\w+)\?", text):
        return [t.colour for t in things if t.shape == match[1]]
    if match := re.fullmatch(r"What shape is marked (\w)\?", text):
        return [t.shape for t in things if t.mark == match[1]]
    if match := re.fullmatch(r"What shape is (\w+)\?", text):
        return [t.shape for t in things if t.colour == match[1]]
    if match := re.fullmatch(r"Is there a (\w+ \w+)\?", text):
        return ["yes" if any(f"{t.colour} {t.shape}" == match[1] for t in things) else "no"]
    if match := re.fullmatch(r"How many (\w+) shapes are there\?", text):
        return [NUMBERS[sum(t.colour == match[1] for t in things)]]
    if match := re.fullmatch(r"How many (\w+)s are there\?", text):
        return [NUMBERS[sum(t.shape == match[1] for t in things)]]
    if match := re.fullmatch(r"Where is the (\w+) (\w+)\?", text):
        rows, columns = ("top", "upper", "lower", "bottom"), ("far left", "left", "right", "far right")
        return [
            f"{rows[int(t.centre[1] // CELL)]} {columns[int(t.centre[0] // CELL)]}"
            for t in things
            if (t.colour, t.shape) == match.groups()
        ]
    if match := re.fullmatch(r"Which (digit|letter) is on the (\w+) (\w+)\?", text):
        marks = [t.mark for t in things if (t.colour, t.shape) == (match[2], match[3])]
        return [mark for mark in marks if mark and mark.isdigit() == (match[1] == "digit")]
    match = re.fullmatch(r"Is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", text)
    assert match, text
    (first,) = (t for t in things if (t.colour, t.shape) == (match[1], match[2]))
    (second,) = (t for t in things if (t.colour, t.shape) == (match[4], match[5]))
    axis, sign = (0 if "of" in match[3] else 1), (1 if match[3] in ("left of", "above") else -1)
    return ["yes" if sign * first.centre[axis] < sign * second.centre[axis] else "no"]


@pytest.mark.parametrize("kind", KINDS)
def test_answer_is_the_only_one_that_fits(kind: str) -> None:
    rng, count = random.Random(kind), 0
    for seed in range(150):
        question = KINDS[kind](make_scene(seed), rng)
        if question is None:
            continue
        count += 1
        assert question.kind == kind
        assert solve(make_scene(seed), question.text) == [question.answer]
    assert count > 30


def test_half_of_yes_and_no_questions_are_yes_and_counts_vary() -> None:
    rng = random.Random(1)
    scenes = [make_scene(seed) for seed in range(1500)]
    for kind in ("existence", "relation"):
        yes = sum(random_question(scene, rng, (kind,)).answer == "yes" for scene in scenes) / len(scenes)
        assert 0.45 < yes < 0.55
    counts = Counter(random_question(scene, rng, ("count",)).answer for scene in scenes)
    assert set(counts) >= {"zero", "one", "two", "three", "four"}
    assert max(counts.values()) < 0.45 * len(scenes)


def test_things_are_those_that_the_question_names() -> None:
    rng = random.Random(2)
    for seed in range(100):
        scene = make_scene(seed)
        question = random_question(scene, rng, ("where", "digit", "letter", "relation"))
        names = re.findall(r"the (\w+ \w+)", question.text)
        if names:
            assert [scene.things[i].name for i in question.things] == names


@pytest.mark.parametrize("split", ["validation", "test"])
def test_frozen_questions_ask_every_kind_equally_often(split: str) -> None:
    items = frozen_questions(split, 80)
    assert Counter(question.kind for _, question in items) == dict.fromkeys(KINDS, 10)
    assert items == frozen_questions(split, 80)


def test_frozen_questions_refuse_more_than_the_split_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEEDS, "validation", (0, 5))
    with pytest.raises(ValueError, match="count"):
        frozen_questions("validation", 50)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("red", True), (" Red.", True), ("red\n", True), ("reddish", False), ("", False), ("red circle", False)],
)
def test_is_correct_ignores_only_case_space_and_full_stop(answer: str, right: bool) -> None:
    assert is_correct(Question("colour", "What colour is the star?", "red", (0,)), answer) is right


def test_is_correct_takes_a_letter_in_either_case() -> None:
    question = Question("letter", "Which letter is on the red star?", "K", (0,))
    assert is_correct(question, "K") and is_correct(question, "k.") and not is_correct(question, "L")
