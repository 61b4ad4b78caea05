"""The hard sets are as their names say, and are the sets on which the published figures were measured."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from fsr_core.tiny import scenes
from fsr_core.tiny.hard_sets import HARD_SETS, draw, frozen_hard_set, verify
from fsr_core.tiny.scenes import CELL, RADII, SEEDS


@pytest.mark.parametrize("name", HARD_SETS)
def test_verify_accepts_the_set_and_refuses_a_changed_one(name: str) -> None:
    items = frozen_hard_set(name)
    verify(name, items)
    kinds = Counter(question.kind for _, question in items)
    assert set(kinds) == set(HARD_SETS[name].kinds) and len(set(kinds.values())) == 1
    scene, question = items[-1]
    items[-1] = (scene, replace(question, answer="mauve"))
    with pytest.raises(ValueError, match="sha256"):
        verify(name, items)


def test_sets_share_no_seeds() -> None:
    ranges = sorted(
        [(hard_set.seeds.start, hard_set.seeds.stop) for hard_set in HARD_SETS.values()] + list(SEEDS.values())
    )
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))


@pytest.mark.parametrize("name", HARD_SETS)
def test_things_lie_in_their_cells(name: str) -> None:
    for scene, _ in frozen_hard_set(name, 60):
        for thing in scene.things:
            x, y = thing.centre
            assert thing.column * CELL <= x - thing.radius < x + thing.radius <= (thing.column + 1) * CELL
            assert thing.row * CELL <= y - thing.radius < y + thing.radius <= (thing.row + 1) * CELL


def test_each_set_has_what_makes_it_hard() -> None:
    assert all(len(scene.things) == 14 for scene, _ in frozen_hard_set("crowded", 40))
    assert all(thing.radius <= 28 for scene, _ in frozen_hard_set("tiny", 40) for thing in scene.things)
    for scene, _ in frozen_hard_set("distractors", 40):
        assert len({thing.name for thing in scene.things}) == len(scene.things) == 8
        colours, shapes = (Counter(getattr(t, key) for t in scene.things) for key in ("colour", "shape"))
        assert sorted(colours.values()) == sorted(shapes.values()) == [2, 3, 3]
    smallest, largest = RADII
    for scene, _ in frozen_hard_set("shifted", 40):
        assert all(not smallest <= thing.radius <= largest for thing in scene.things)


def test_only_the_shifted_set_has_other_backgrounds() -> None:
    plain, _ = frozen_hard_set("tiny", 1)[0]
    assert draw(plain).tobytes() == scenes.draw(plain).tobytes()
    shifted, _ = frozen_hard_set("shifted", 1)[0]
    assert draw(shifted).tobytes() == draw(shifted).tobytes() != scenes.draw(shifted).tobytes()


@pytest.mark.parametrize(("name", "limit"), [("harder", 1), ("tiny", 0), ("tiny", 5000)])
def test_unknown_set_or_limit_is_refused(name: str, limit: int) -> None:
    with pytest.raises(ValueError, match="set"):
        frozen_hard_set(name, limit)
