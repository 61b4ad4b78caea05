"""What every command does alike: errors in one line, help, examples."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fsr.cli.main import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="fsr")


@pytest.mark.parametrize("command", ["ask", "explain"])
def test_wrong_video_is_refused_in_one_line(frames, tmp_path, command):
    (tmp_path / "empty").mkdir()
    picture, more = frames / "f1.PNG", ["-o", "why.png"] if command == "explain" else []
    for given, says in (
        ([tmp_path / "empty"], "holds no frames"),
        ([frames, "--fps", "0"], "frames_per_second: 0.0 is not above 0"),
        ([picture, "--fps", "2"], "--fps: there is no video"),
        ([tmp_path / "missing.png"], "cannot read"),
        ([picture, "--budget", "few"], "--budget: 'few' is not tokens"),
    ):
        done = invoke(command, given[0], "?", *given[1:], *more)
        assert done.exit_code == 1 and says in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask"], "error: Missing argument "),
        (["ask", "a.png", "?", "--bugdet", "8"], "error: No such option: --bugdet"),
        (["ask", "a.png", "?", "--spread", "uneven"], "error: Invalid value for '--spread': "),
        (["aks"], "error: No such command 'aks'"),
        (["--nothing"], "error: No such option: --nothing; see fsr --help\n"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, says):
    done = invoke(*arguments)
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(" --help\n")


def test_no_arguments_show_the_help():
    done = invoke()
    assert "Usage:" in done.output and "error:" not in done.output


@pytest.mark.parametrize("command", ["", "up", "scene", "demo", "ask", "explain", "load"])
def test_help_has_an_example(command):
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0 and f"example: fsr {command}" in done.output


def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "fsr.cli.main", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"error: the disk") and done.stderr.count(b"\n") == 1


def test_scene_that_cannot_be_written_is_one_line(tmp_path):
    done = invoke("scene", "-o", tmp_path / "scene.xyz")
    assert done.exit_code == 1 and done.stderr.startswith("error: --output: cannot write")


def test_default_scene_has_the_star_of_the_examples(tmp_path):
    done = invoke("scene", "-o", tmp_path / "scene.png", "--json")
    answers = {row["question"]: row["answer"] for row in json.loads(done.stdout)["questions"]}
    assert answers["Where is the red star?"] == "top right" and answers["What colour is the star?"] == "red"
