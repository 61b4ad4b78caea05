"""Accuracy of the embedded model on its whole frozen test set, as promised by its model card and the README."""

import pytest

from fsr_core.evaluation.runner import Plan, Runner
from fsr_core.tiny.test_set import SIZE


@pytest.mark.timeout(1200)  # 4,096 answers; a minute on two quiet cores
def test_accuracy_with_all_and_with_a_ninth_of_the_tokens_is_high(tmp_path):
    plan = Plan({"test": SIZE}, ["fsr"], [16], ablate=False, resamples=100)
    result = Runner("fsr-tiny", tmp_path).run(plan, lambda done: None)["test"]
    assert result["full"]["accuracy"]["mean"] >= 0.9
    assert min(result["full"]["kinds"].values()) >= 0.8
    assert result["rows"][0]["accuracy"]["mean"] >= 0.85
