"""The properties of the instrument, on saliency and keys whose values are known."""

from __future__ import annotations

import pytest
import torch

from fsr_core.evaluation.properties import (
    Property,
    background_auc,
    main,
    oracle_scores,
    peak_share,
    things_touched,
)
from fsr_core.evaluation.statistics import Estimate
from fsr_core.tiny.scenes import make_scene, patch_owner

SCENE = make_scene(1_000_000)
owners = torch.from_numpy(patch_owner(SCENE).reshape(-1))


def test_attention_on_one_patch_of_each_thing_touches_all() -> None:
    saliency = torch.zeros(144)
    for i in range(len(SCENE.things)):
        saliency[(owners == i).nonzero()[0]] = 1.0
    assert things_touched(saliency, SCENE) == 1.0
    assert peak_share(saliency) == pytest.approx(1 / len(SCENE.things))


def test_attention_on_the_background_touches_nothing() -> None:
    assert things_touched((owners < 0).float(), SCENE) == 0.0
    assert peak_share(torch.ones(144)) == pytest.approx(1 / 144)


def test_background_of_one_key_is_told_and_random_keys_are_not() -> None:
    keys = torch.randn(144, 64, generator=torch.Generator().manual_seed(0))
    assert background_auc(keys, SCENE) < 0.7
    keys[owners < 0] = torch.ones(64)
    assert background_auc(keys, SCENE) == 1.0


def test_oracle_takes_the_asked_things_in_turns() -> None:
    asked = (2, 5)
    order = oracle_scores(SCENE, asked).argsort(descending=True)
    most = int(sum((owners == i).sum() for i in asked))
    assert {int(i) for i in owners[order[:2]]} == set(asked)
    assert {int(i) for i in owners[order[:most]]} == set(asked)
    assert (owners[order[most : int((owners >= 0).sum())]] >= 0).all()


@pytest.mark.parametrize(
    ("about", "measured", "met"),
    [
        (Property("a", 0.7), Estimate(0.71, 0.6, 0.8), True),
        (Property("a", 0.7), Estimate(0.69, 0.6, 0.8), False),
        (Property("a", 0.08, at_most=True), Estimate(0.07, 0.0, 0.1), True),
        (Property("a", 0.08, at_most=True), Estimate(0.09, 0.0, 0.1), False),
        (Property("a", 0.0, beyond=True), Estimate(0.02, -0.01, 0.05), False),
        (Property("a", 0.0, beyond=True), Estimate(0.02, 0.01, 0.05), True),
    ],
)
def test_a_goal_is_met_or_not(about: Property, measured: Estimate, met: bool) -> None:
    assert about.met(measured) is met


@pytest.mark.parametrize("given", [["--questions", "3"], ["--threads", "0"], ["--split", "train"], ["--model", "/no"]])
def test_wrong_options_name_themselves(given: list[str], capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*given, "--out", str(tmp_path)])
    assert ended.value.code == 2 and given[0].strip("-") in capsys.readouterr().err
