"""What `fsr plan` prints and writes."""

import json

import pytest
from typer.testing import CliRunner

from fsr.cli.main import app
from fsr.cli.plan import command

LLAVA = ["--model", "llava-hf/llava-1.5-7b-hf", "--gpu", "h100", "--rate", "100", "--answer-tokens", "16"]


def plan(*arguments):
    return CliRunner().invoke(app, ["plan", *LLAVA, *map(str, arguments)], prog_name="fsr")


def test_table_has_tiers_costs_and_what_binds():
    done = plan("--budget", "64,0.25")
    assert done.exit_code == 0, done.output
    heads = ("64 tokens", "144 tokens", "all 576 tokens")
    rows = ("decoders", "encoders (GPUs)", "gateways (cores)", "dollars an hour", "KV memory of a request", "Gbit/s")
    for text in (*heads, *rows, "what binds", "https://lambda.ai/instances"):
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_json_has_every_figure_by_case():
    done = plan("--budget", "64", "--json", "--gpu-price", "2", "--answer-tokens", "32")
    made = json.loads(done.stdout)
    assert made["gpu"]["price"] == 2 and made["workload"]["answer_tokens"] == 32
    few, whole = made["cases"]
    assert (few["label"], few["planned"]["kept"]) == ("64 tokens", 64)
    assert few["planned"]["gpus"] < whole["planned"]["gpus"]
    assert few["simulated"]["answers_per_second"] > 0
    assert {"kv_bytes", "bytes_per_second", "dollars_per_hour"} <= few["planned"].keys()
    assert [point["rate"] for point in made["over_rate"]["64 tokens"]][-1] == pytest.approx(200)


def test_units_of_options_are_those_of_data_sheets():
    own = [
        "--gpu-tflops",
        "200",
        "--gpu-memory",
        "48",
        "--gpu-bandwidth",
        "2",
        "--gpu-price",
        "1",
        "--picture-kb",
        "10",
    ]
    made = json.loads(plan("--gpu", "mine", *own, "--picture-ms", "5", "--json").stdout)
    assert [made["gpu"][name] for name in ("flops", "memory", "bandwidth", "price")] == [2e14, 48e9, 2e12, 1]
    assert (made["workload"]["picture_bytes"], made["workload"]["picture_seconds"]) == (10_000, 0.005)


def test_plot_is_drawn(tmp_path):
    done = plan("--plot", tmp_path / "plan.png")
    assert done.exit_code == 0 and (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "auto"], "--budget: a plan needs tokens (64) or a share (0.11)"),
        (["--budget", "default"], "--budget: a plan needs tokens"),
        (["--budget", "0"], "--budget: expected a whole number >= 1, got 0"),
        (["--budget", "1.5"], "--budget: 1.5 is no share"),
        (["--rate", "nan"], "--rate: expected a number"),
        (["--visual-tokens", "0"], "--visual-tokens: expected a whole number"),
        (["--gpu", "abacus"], "--gpu: 'abacus' is unknown; use one of a100"),
        (["--gpu-tflops", "inf"], "--gpu-tflops: expected a number"),
        (["--gpu-memory", "10"], "--gpus-per-decoder: the weights of llava-hf/llava-1.5-7b-hf take 13.5 GB"),
        (["--model", "llava"], "--model: 'llava' is neither a folder nor a hub id"),
        (["--fill", "0"], "--fill: expected a number"),
        (["--plot", "/nowhere/plan.png"], "--plot: cannot write /nowhere/plan.png"),
    ],
)
def test_wrong_option_is_refused_in_one_line(arguments, says):
    done = plan(*arguments)
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert plan().stderr == "error: simpy is missing, which simulates the queues; pip install 'fsr-gateway[plan]'\n"
