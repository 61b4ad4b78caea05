"""`fsr evaluate --quick` as a user runs it: it writes every result, and a second run uses the stored answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fsr_core import methods
from fsr_core.evaluation import __main__ as evaluation
from fsr_core.evaluation.method_configs import runs


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsr.cli.main", "evaluate", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


FEW = ("fsr", "holov", "random")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("chosen", "sets"),
    [
        pytest.param(FEW, ["test", "shifted"], id="few"),
        pytest.param(
            tuple(methods()), ["test", "crowded", "distractors", "tiny", "shifted"], id="all", marks=pytest.mark.cluster
        ),
    ],
)
def test_quick_writes_every_result_and_stores_answers(tmp_path: Path, chosen: tuple[str, ...], sets: list[str]) -> None:
    choice = ("--sets", ",".join(sets), "--methods", ",".join(chosen))
    done = evaluate("--quick", "--limit", "8", *choice, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["sets"]) == sets
    labels = [run.label for run in runs(chosen, 1)]
    for figures in results["sets"].values():
        assert [(row["method"], row["budget"]) for row in figures["rows"]] == [
            (label, k) for label in labels for k in (32, 16, 8, 4)
        ]
        for row in figures["rows"]:
            assert row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"]
            assert row["method"] != "fsr" or row["difference"]["mean"] == 0
    test = results["sets"]["test"]
    assert test["full"]["accuracy"]["mean"] > 0.4  # guessing the commonest answer gives under a quarter
    assert {row["group"] for row in test["ablations"]} == {
        "evidence", "stages", "kappa", "rho", "sign of relevance", "keys",
    }  # fmt: skip
    assert all(0 <= row["clamped"] <= 1 for row in test["focus"])
    assert all(row["tokens"]["least"] <= row["tokens"]["mean"] <= row["tokens"]["most"] for row in test["auto"])
    text = (tmp_path / "results.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert all(text.count(f"\n| {label} |") > len(sets) for label in labels if label != "random")
    assert f"{4 * (len(labels) - 1)} comparisons; " in text
    assert [set(measured["times"]) for measured in test["milliseconds"]] == [set(labels)] * 2
    pooled = results["pooled"]
    assert pooled["questions"] == 8 * len(sets)
    for reference, rows in pooled["against"].items():
        assert {row["method"] for row in rows} == set(labels)
        assert all(row["verdict"] == "ties" for row in rows if row["method"] == reference)
    plots = ["accuracy-budget", "accuracy-harder", "accuracy-kinds", "accuracy-time", "overlays"]
    for name in plots:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300

    answers = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*/*/*.json")}
    again = evaluate("--quick", "--limit", "8", *choice, "--out", str(tmp_path), "--json")
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*/*/*.json")} == answers
    second = json.loads(again.stdout)["sets"]
    assert [figures["rows"] for figures in second.values()] == [figures["rows"] for figures in results["sets"].values()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "nope"], "--sets: 'nope' is unknown"),
        (["--methods", "magic"], "method: 'magic' is unknown"),
        (["--limit", "99999"], "limit: 99999 is outside the set 'test'"),
        (["--threads", "0"], "--threads: 0 is below 1"),
        (["--budgets", "few"], "is not a list of whole numbers"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_wrong_argument_is_named(tmp_path: Path, arguments: list[str], message: str, capfd: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        evaluation.main(["--out", str(tmp_path), *arguments])
    told = capfd.readouterr().err if refused.value.code == 2 else str(refused.value)  # argparse prints, and ends with 2
    assert message in told and told.startswith("error: ") and len(told.strip().splitlines()) == 1
