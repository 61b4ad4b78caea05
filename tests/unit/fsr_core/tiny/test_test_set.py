"""The frozen test set is the one on which the published figures were measured."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from fsr_core.tiny import test_set as module
from fsr_core.tiny.scenes import GENERATOR_VERSION, SEEDS, draw
from fsr_core.tiny.test_set import RECORD, SIZE, digest, frozen_test_set, record, verify

STORED = json.loads(RECORD.read_text())


def test_first_questions_have_the_recorded_digest() -> None:
    assert digest(frozen_test_set(64)) == STORED["sha256_first_64"]


def test_whole_set_is_the_recorded_one() -> None:
    items = frozen_test_set()
    verify(items)
    assert len(items) == SIZE == STORED["questions"] >= 2000
    assert STORED["generator_version"] == GENERATOR_VERSION
    start, stop = SEEDS["test"]
    assert all(start <= scene.seed < stop for scene, _ in items)


def test_verify_refuses_a_changed_question() -> None:
    items = frozen_test_set()
    scene, question = items[100]
    items[100] = (scene, replace(question, answer="mauve"))
    with pytest.raises(ValueError, match="sha256"):
        verify(items)


def test_verify_refuses_a_changed_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = partial(record, draw=lambda scene: draw(scene).rotate(90))
    monkeypatch.setattr(module, "record", turned)
    with pytest.raises(ValueError, match="thumbnails"):
        verify(frozen_test_set())


@pytest.mark.parametrize("limit", [0, -3, SIZE + 1])
def test_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        frozen_test_set(limit)
