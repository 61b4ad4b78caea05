"""`fsr calibrate` with the embedded model in this process: results, their files, and ends in the middle."""

import json
import signal
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.calibrate import coverage, coverage_table
from fsr.cli.main import app
from fsr.gateway.options.settings import GatewaySettings
from fsr_core.tiny.questions import frozen_questions
from fsr_core.tiny.scenes import draw
from helpers.waiting import until

FEW = ("--max-tokens", "4", "--methods", "fsr", "--pictures", "2", "--json")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of questions about scenes, without answers."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for scene, question in frozen_questions("validation", 48):
        draw(scene).save(folder / f"{scene.seed}.png")
        lines.append({"picture": f"{scene.seed}.png", "question": question.text, "answer": question.answer})
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for line in lines:
        del line["answer"]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "questions.jsonl"


def command(file, out, *options):
    return ["calibrate", str(file), "--checkpoint", "fsr-tiny", "--out", str(out), *FEW, *options]


def calibrate(file, out, *options):
    return CliRunner().invoke(app, command(file, out, *options), prog_name="fsr")


@pytest.fixture(scope="module")
def kept(questions, tmp_path_factory):
    """A target that the largest budget keeps and one token does not: the folder, and what was printed."""
    out = tmp_path_factory.mktemp("out")
    return out, calibrate(questions, out, "--target", "0.6", "--budgets", "72,1")


def test_run_when_a_budget_keeps_the_target_says_which(kept):
    out, done = kept
    printed = json.loads(done.stdout)
    assert (done.exit_code, done.stderr) == (0, "")
    assert printed == json.loads((out / "result.json").read_text())
    assert printed["chosen"] == {"default_budget": 72, "default_method": "fsr"}
    large, small = printed["candidates"]
    assert (large["verdict"], large["tokens_kept"], large["tokens"]) == ("kept", 72, 144)
    assert small["verdict"] in ("below", "open") and large["low"] > 0.6 >= small["mean"]
    assert printed["questions"]["asked"] < printed["questions"]["given"] == 48


def test_policy_is_read_by_the_gateway(kept):
    settings = GatewaySettings.load(["--config", str(kept[0] / "policy.yaml")])
    assert (settings.default_budget, settings.default_method) == ("72", "fsr")


def test_report_shows_the_table_the_plot_and_changed_answers(kept):
    out, _ = kept
    report = (out / "report.md").read_text()
    assert report.startswith("The cheapest is fsr 72 (72 of 144 tokens)") and "keeps the target (chosen)" in report
    shown = [line.rpartition("(")[2].rstrip(")") for line in report.splitlines() if line.startswith("![")]
    assert "plot.png" in shown and any(name.startswith("changed/") for name in shown)
    for name in shown:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100


def test_run_when_it_is_repeated_asks_nothing(kept, questions):
    out, done = kept
    before = (out / "run.jsonl").read_bytes()
    again = calibrate(questions, out, "--target", "0.6", "--budgets", "72,1")
    assert (out / "run.jsonl").read_bytes() == before and again.stdout == done.stdout


def test_run_when_no_budget_keeps_the_target_ends_with_1_and_leaves_no_policy(kept, questions):
    out, _ = kept
    done = calibrate(questions, out, "--target", "0.9", "--budgets", "1")
    assert done.exit_code == 1 and json.loads(done.stdout)["chosen"] is None
    assert not (out / "policy.yaml").exists()


def test_run_when_answers_are_given_measures_accuracy(kept, questions, tmp_path):
    (tmp_path / "run.jsonl").write_bytes((kept[0] / "run.jsonl").read_bytes())  # the same questions
    answers = questions.with_name("answers.jsonl")
    done = calibrate(answers, tmp_path, "--target", "0.5", "--budgets", "72", "--score", "f1")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["measure"], found["score"]) == (0, "accuracy", "f1")
    assert found["all_tokens"]["mean"] > 0.6


def test_run_when_it_is_interrupted_goes_on_with_the_same_command(questions, tmp_path):
    options = ("--target", "0.6", "--budgets", "72")
    arguments = command(questions, tmp_path, *options)
    process = subprocess.Popen([sys.executable, "-m", "fsr.cli.main", *arguments], stderr=subprocess.PIPE, text=True)
    answers = tmp_path / "run.jsonl"
    until(lambda: process.poll() is not None or (answers.exists() and answers.read_bytes().count(b"\n") >= 2))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    before = answers.read_bytes()
    assert process.returncode == 130
    assert errors == (
        f"error: interrupted; {before.count(10)} answers are kept in {answers}; the same command goes on from there\n"
    )
    assert calibrate(questions, tmp_path, *options).exit_code == 0
    assert answers.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "nothing"), "error: --methods: 'nothing' is unknown; use fsr, "),
        (("--option", "nothing=1"), "error: --option: fsr has no option 'nothing'; its options are"),
        (("--checkpoint", "/nowhere"), "error: --checkpoint: model: '/nowhere' is neither a folder"),
        (("--device", "abacus"), "error: --checkpoint: "),
    ],
)
def test_run_when_an_option_is_wrong_ends_with_one_line(questions, tmp_path, options, message):
    done = calibrate(questions, tmp_path, "--target", "0.6", "--budgets", "72", *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_run_when_a_picture_is_damaged_names_its_line(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    line = json.dumps({"picture": "bad.png", "question": "?"})
    (tmp_path / "questions.jsonl").write_text("\n".join([line] * 20))
    done = calibrate(tmp_path / "questions.jsonl", tmp_path, "--target", "0.5", "--budgets", "72")
    assert done.exit_code == 1 and "bad.png" in done.stderr and "questions.jsonl, line " in done.stderr
    assert done.stderr.count("\n") == 1


def test_coverage_holds_choices_against_the_truth_of_a_pool(tmp_path):
    """In short; `python -m benchmarks.calibrate coverage` has a hundred runs of each case."""
    *rows, about = coverage(24, 2, 60, tmp_path)
    assert {row["measure"] for row in rows} == {"agreement", "accuracy", "relative-accuracy"}
    assert all(0 <= row["kept"] <= row["runs"] == 2 == sum(row["chosen"].values()) for row in rows)
    assert 0 < about["truth"]["fsr 0.5"]["agreement"] <= 1 and about["pool"] == 24
    assert coverage_table([*rows, about]).count("\n") == 4 + len(rows)
