"""The embedded model on its frozen test set: the accuracy that its model card and the README promise."""

import pytest

from fsr_core.evaluation.runner import Plan, Runner
from fsr_core.tiny.test_set import SIZE


@pytest.mark.timeout(1200)  # twice as many answers as questions; the whole set takes a minute on two quiet cores
@pytest.mark.parametrize(("questions", "worst_kind"), [(256, 0.7), pytest.param(SIZE, 0.8, marks=pytest.mark.cluster)])
def test_accuracy_of_all_and_of_a_ninth_of_the_tokens_is_as_promised(tmp_path, questions, worst_kind):
    plan = Plan(sets={"test": questions}, methods=["fsr"], budgets=[16], ablate=False, resamples=100)
    result = Runner("fsr-tiny", tmp_path).run(plan, lambda done: None)["sets"]["test"]
    assert result["full"]["accuracy"]["mean"] >= 0.9
    assert min(result["full"]["kinds"].values()) >= worst_kind
    assert result["rows"][0]["accuracy"]["mean"] >= 0.85
