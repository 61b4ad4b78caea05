"""`make bench`: its results while it runs, after it was stopped, and when a step fails."""

import json
import re
from dataclasses import replace

import pytest

from benchmarks import bench, machine
from benchmarks.bench import STEPS, Step
from benchmarks.bench_report import report

SELECTION = Step(
    title="selection",
    module="selection",
    arguments=("--shape", "16,4,8", "--batch", "1", "--peer-width", "8", "--repeats", "1", "--json"),
    seconds=1,
)
FIGURES = {
    "hop": {
        "milliseconds": {
            "in process": {"new": {"p50": 15.3}, "cached": {"p50": 1.7}},
            "gateway": {"new": {"p50": 19.2}, "cached": {"p50": 4.1}},
        },
        "added_ms": {"gateway": {"new": 3.9, "cached": 2.4}},
        "per_second_16_clients": {"new": 60.0, "cached": 200.0},
    },
    "stages": {"fsr-tiny": {"16 tokens, new picture": {"prefill": 7.5, "vision tower": 2.5}}},
    "goodput": {
        "rows": [
            {
                "clients": 8,
                "visual_tokens": 64,
                "answers_per_second": 4.0,
                "goodput": 3.5,
                "tokens_per_second": 64.0,
                "ttft_p50_ms": None,
                "errors": 0,
            }
        ],
        "times_as_many": {"8": 4.4},
    },
    "costs": [{"budget": 16, "cpu_ms": {"gateway": 1.4, "decoder": 9.0}, "per_second": 50.0}],
    "pictures": "| a | table |",
    "selection": [
        {"n": 576, "k": 64, "dk": 8, "batch": 1, "fsr_ms": 8, "cdpruner_ms": 48, "divprune_ms": 50, "peer_ratio": 6.0}
    ],
    "follow_ups": {
        "replicas": 3,
        "own cache": {"found": 0.33, "first_ms": 20, "second_ms": 18, "cpu_ms_of_a_new_picture": 15},
    },
}


def results(busy=0.0, **steps):
    about = {"code": "abc", "began": "now", "processor": "CPU", "cores": 2, "memory_gib": 8.0, "system": "Linux"}
    about |= {"python": "3.12", "packages": {"torch": "2.13"}, "load_average": [0.1], "busy": busy}
    return {"machine": about, "steps": steps}


@pytest.fixture
def steps(monkeypatch):
    """Two real benchmarks, of which the second refuses its arguments."""
    wrong = Step(title="wrong", module="selection", arguments=("--batch", "none"), seconds=1)
    monkeypatch.setattr(bench, "STEPS", {"selection": SELECTION, "hop": wrong})
    monkeypatch.setattr(bench, "machine", lambda version: results()["machine"] | {"code": version})
    monkeypatch.setattr(bench, "busy_share", lambda seconds: 0.0)


def test_bench_when_a_step_fails_keeps_the_others_and_goes_on_with_what_is_missing(steps, tmp_path, capsys):
    assert bench.bench(tmp_path, ["selection", "hop"], minutes=5.0, again=False) == 1
    measured = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert measured["selection"]["figures"][0]["n"] == 16
    assert re.match(r"ended with status 2: .*--batch.*none", measured["hop"]["error"])
    page = (tmp_path / "report.md").read_text()
    assert "| 16, 4, 8 | 1 |" in page and "Not measured: ended with status 2" in page
    capsys.readouterr()
    assert bench.bench(tmp_path, ["selection"], minutes=5.0, again=False) == 0
    assert "[1/1] selection: measured before" in capsys.readouterr().out


def test_bench_when_time_is_short_leaves_steps_out(steps, tmp_path, capsys):
    assert bench.bench(tmp_path, ["selection", "hop"], minutes=0.0001, again=True) == 2
    assert "left out: 0.0001 minutes are over" in (tmp_path / "report.md").read_text()


def test_step_when_it_takes_too_long_is_ended(tmp_path):
    with pytest.raises(RuntimeError, match="took longer than 0 s"):
        bench.run(SELECTION, "selection", tmp_path, 0.01)


def test_step_when_it_prints_more_than_its_figures_fails(tmp_path):
    """As Ray does at its end. Here the arguments do not ask for JSON."""
    with pytest.raises(RuntimeError, match=r"printed something else than its figures .*selection\.out"):
        bench.run(replace(SELECTION, arguments=SELECTION.arguments[:-1]), "selection", tmp_path, 300)


def test_report_when_all_is_measured_has_every_figure():
    assert FIGURES.keys() == STEPS.keys()
    page = report(results(**{name: {"figures": figures} for name, figures in FIGURES.items()}))
    for row in (
        "| gateway | 19.2 | 3.9 | 4.1 | 2.4 |",
        "| 16 tokens, new picture | 0.0 | 0.0 | 2.5 | 7.5 | 10.0 |",
        "| 8 clients, 64 tokens | 4.00 | 3.50 | 64.0 | - | 0 |",
        "4.4 times with 8 clients",
        "| 16 tokens, round 1 | 1.4 | 9.0 | 50 |",
        "| a | table |",
        "| own cache | 33% | 20.0 | 18.0 | 15.0 |",
    ):
        assert row in page
    assert "Warning" not in page and "ot measured" not in page


def test_report_when_the_machine_was_busy_warns():
    page = report(results(busy=0.5, hop={"figures": FIGURES["hop"], "busy_before": 0.9}))
    assert "**Warning: the machine was not quiet** (cores busy: 50% at the start, 90% before hop)" in page


def test_page_when_a_step_is_missing_is_not_written(tmp_path):
    bench.write(tmp_path, results(hop={"figures": FIGURES["hop"]}))
    with pytest.raises(SystemExit, match="error: not measured yet: stages, goodput, costs"):
        bench.write_page(tmp_path)


def test_page_when_all_is_measured_has_report_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(bench, "PICTURE", tmp_path / "img.png")
    bench.PAGE.write_text("# Page\n\n<!-- begin bench -->\nold\n<!-- end bench -->\n\nMore.\n")
    (tmp_path / "stages.png").write_bytes(b"picture")
    bench.write(tmp_path, results(**{name: {"figures": figures} for name, figures in FIGURES.items()}))
    bench.write_page(tmp_path)
    page = bench.PAGE.read_text()
    assert page.startswith("# Page\n\n<!-- begin bench -->\n2 cores of CPU") and page.endswith(
        "<!-- end bench -->\n\nMore.\n"
    )
    assert "\n### What compression saves\n" in page and "](img/img.png)" in page and "old" not in page
    assert bench.PICTURE.read_bytes() == b"picture"


def test_machine_says_what_the_figures_depend_on():
    about = machine.machine("abc")
    assert about["cores"] >= 1 and 0 <= about["busy"] <= 1 and about["packages"]["torch"]
    assert re.fullmatch(r"[0-9a-f]{7,}( changed [0-9a-f]{8})?|unknown", machine.code_version())
