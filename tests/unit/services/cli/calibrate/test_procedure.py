"""The sequence of tests, on stored answers: nothing is asked, as where a finished run is repeated."""

import random

import pytest

from fsr.cli.calibrate.ladder import ALL_TOKENS, ladder
from fsr.cli.calibrate.plan import make_plan
from fsr.cli.calibrate.procedure import Procedure, Verdict
from fsr.cli.calibrate.questions import Question
from fsr.cli.calibrate.run_file import Reply, RunFile
from fsr.cli.calibrate.scoring import Scorer
from fsr.client.errors import InvalidRequestError


def question(folder, number, answers=()):
    path = folder / f"{number}.png"
    path.write_bytes(b"%d" % number)
    return Question(place=path.name, path=path, is_video=False, fps=2.0, text="?", answers=answers)


class Stored:
    """Answers of a candidate: `wrong` of a hundred differ from those with all tokens, which are "yes"."""

    def __init__(self, folder, questions=240, answers=("yes",)):
        self.folder = folder
        self.questions = [question(folder, number, answers) for number in range(questions)]
        self.progress = []

    async def run(self, wrong, budgets="40,20,10", target=0.9, **options):
        methods = ladder(budgets, ",".join(wrong), {})
        defaults = {"confidence": 0.95, "measure": "agreement", "scorer": Scorer("exact", None), "clients": 4}
        plan = make_plan(self.questions, methods, target=target, seed=0, **(defaults | options))
        with RunFile(self.folder / "run.jsonl", {}) as file:
            for candidates in methods:
                for candidate, share in zip(candidates, wrong[candidates[0].method], strict=True):
                    chance = random.Random(str(candidate))
                    for one in self.questions:
                        text = "no" if chance.random() < share / 100 else "yes"
                        self.add(
                            file, one, candidate, Reply(text=text, tokens=144, kept=candidate.budget, fingerprint="f")
                        )
            for one in self.questions:
                self.add(file, one, ALL_TOKENS, Reply(text="yes", tokens=144, kept=144, fingerprint="f"))
            return await Procedure(plan, None, file, lambda who, done: self.progress.append((str(who), done))).run()

    def add(self, file, one, candidate, reply):
        if file.get(one, candidate) is None:
            file.add(one, candidate, reply)


def verdicts(result):
    return [[one.verdict for one in outcomes] for outcomes in result.methods]


KEPT, BELOW, OPEN, UNTESTED = Verdict.KEPT, Verdict.BELOW, Verdict.OPEN, Verdict.UNTESTED


async def test_ladder_when_a_budget_is_below_ends_there_and_the_one_above_is_chosen(tmp_path):
    result = await Stored(tmp_path).run({"fsr": [0, 1, 40]})
    assert verdicts(result) == [[KEPT, KEPT, BELOW]]
    assert str(result.chosen.candidate) == "fsr 20" and result.chosen.mean_kept == 20


async def test_ladder_when_the_largest_budget_is_below_chooses_none_and_tests_no_other(tmp_path):
    stored = Stored(tmp_path)
    result = await stored.run({"fsr": [40, 0, 0]})
    assert verdicts(result) == [[BELOW, UNTESTED, UNTESTED]] and result.chosen is None
    assert max(done for _, done in stored.progress) < 60


async def test_ladder_when_a_method_keeps_the_smallest_budget_tests_no_further_method(tmp_path):
    result = await Stored(tmp_path).run({"fsr": [0, 0, 0], "dart": [0, 0, 0]})
    assert verdicts(result) == [[KEPT] * 3, [UNTESTED] * 3]


async def test_ladder_when_two_methods_differ_chooses_the_fewest_tokens(tmp_path):
    result = await Stored(tmp_path).run({"fsr": [0, 50, 50], "dart": [0, 0, 50]})
    assert str(result.chosen.candidate) == "dart 20"


async def test_ladder_when_two_methods_are_equal_chooses_the_first(tmp_path):
    result = await Stored(tmp_path).run({"dart": [0, 0, 50], "fsr": [0, 0, 50]})
    assert str(result.chosen.candidate) == "dart 20"


async def test_questions_when_all_answers_are_equal_are_the_fewest_that_show_it(tmp_path):
    result = await Stored(tmp_path).run({"fsr": [0]}, budgets="10", clients=1)
    assert result.whole.evidence.questions == pytest.approx(36, abs=1)


async def test_test_when_the_rest_cannot_decide_it_ends(tmp_path):
    result = await Stored(tmp_path, questions=60).run({"fsr": [11]}, budgets="10")
    assert verdicts(result) == [[OPEN]] and result.chosen is None
    assert result.whole.evidence.questions < 60


async def test_changes_are_the_answers_that_differ(tmp_path):
    result = await Stored(tmp_path).run({"fsr": [40]}, budgets="10")
    (outcome,) = result.methods[0]
    assert len(outcome.changes) == round((1 - outcome.evidence.mean) * outcome.evidence.questions) > 0
    assert {(one.whole, one.compressed) for one in outcome.changes} == {("yes", "no")}


async def test_measures_compare_with_what_they_say(tmp_path):
    """All right answers are "no", so that only a changed answer is right."""
    stored = Stored(tmp_path, answers=("no",))
    accuracy = await stored.run({"fsr": [80]}, budgets="10", target=0.5, measure="accuracy")
    assert verdicts(accuracy) == [[KEPT]] and accuracy.whole.evidence.mean == 0
    relative = await stored.run({"fsr": [80]}, budgets="10", target=0.5, measure="relative-accuracy")
    assert verdicts(relative) == [[KEPT]]
    agreement = await stored.run({"fsr": [80]}, budgets="10", target=0.5)
    assert verdicts(agreement) == [[BELOW]]


async def test_measure_when_there_are_answers_is_accuracy(tmp_path):
    questions = [question(tmp_path, number, ("yes",)) for number in range(60)]
    plan = make_plan(
        questions,
        ladder("10", "fsr", {}),
        target=0.9,
        confidence=0.95,
        measure=None,
        scorer=Scorer("exact", None),
        clients=1,
        seed=0,
    )
    assert plan.measure == "accuracy"
    assert sorted(plan.questions, key=str) == sorted(questions, key=str) and plan.questions != questions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0}, "--target: 0 is out of range"),
        ({"target": 1.2}, "--target: 1.2 is out of range"),
        ({"target": float("nan")}, "--target: nan is out of range"),
        ({"target": 1}, "--target: no number of questions"),
        ({"confidence": 1.0}, "--confidence: 1 is out of range"),
        ({"measure": "accuracy"}, "--measure: accuracy needs the right answers"),
        ({"target": 0.98}, "--target: 0.98 takes at least 18. questions.*and 60 are given.* at most 0.9"),
    ],
)
def test_plan_when_it_cannot_work_says_why_before_anything_is_asked(tmp_path, options, message):
    questions = [question(tmp_path, number) for number in range(60)]
    given = {
        "target": 0.9,
        "confidence": 0.95,
        "measure": None,
        "scorer": Scorer("exact", None),
        "clients": 1,
        "seed": 0,
    }
    with pytest.raises(InvalidRequestError, match=message):
        make_plan(questions, ladder("10", "fsr", {}), **(given | options))
