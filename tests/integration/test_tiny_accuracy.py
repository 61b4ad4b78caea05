"""The embedded model on its frozen test set: what its model card and the README promise."""

import pytest

from fsr_core.evaluation.runner import Plan, Runner
from fsr_core.tiny.test_set import SIZE


@pytest.mark.parametrize("size", [256, pytest.param(SIZE, marks=pytest.mark.cluster)])
def test_accuracy_with_all_tokens_and_with_a_ninth_is_as_promised(tmp_path, size):
    plan = Plan({"test": size}, ["fsr"], [16], ablate=False, resamples=100)
    result = Runner("fsr-tiny", tmp_path).run(plan, lambda done: None)["test"]
    assert result["full"]["accuracy"]["mean"] >= 0.9
    assert min(result["full"]["kinds"].values()) >= 0.8
    assert result["rows"][0]["accuracy"]["mean"] >= 0.85
