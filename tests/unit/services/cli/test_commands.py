"""What every command does alike: errors in one line, help, examples."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from fsr.cli.main import app
from fsr.cli.options import compression_choice


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
        ([tmp_path / "missing.mp4"], "video: cannot read"),
        ([picture, "--budget", "few"], "--budget: 'few' is not tokens"),
    ):
        done = invoke(command, given[0], "?", *given[1:], *more)
        assert done.exit_code == 1 and says in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_key_that_goes_to_another_machine_in_plain_text_is_a_warning(monkeypatch):
    monkeypatch.setenv("FSR_API_KEY", "open-sesame")
    nobody = ("models", "--gateway", "name.invalid:9")
    warned, silent = invoke(*nobody), invoke(*nobody, "--insecure")
    says = "warning: --api-key: goes to name.invalid:9 in plain text; use --tls, or --insecure where"
    assert warned.stderr.startswith(says) and "warning" not in silent.stderr
    assert "warning" not in invoke("models", "--gateway", "127.0.0.1:9").stderr


def test_url_is_no_path():
    done = invoke("ask", "https://127.0.0.1:1/x.png", "?")
    assert done.exit_code == 1 and done.stderr.startswith("error: image: cannot fetch https://127.0.0.1:1/x.png (")


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


@pytest.mark.parametrize(
    "command", ["", "up", "doctor", "scene", "demo", "ask", "models", "explain", "load", "calibrate", "keys"]
)
def test_help_has_an_example(command):
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0 and f"example: fsr {command}" in done.output


@pytest.mark.parametrize("command", ["", "up", "models"])
def test_help_has_a_short_name(command):
    done = invoke(*command.split(), "-h")
    assert done.exit_code == 0 and "Usage:" in done.stdout and "--help" in done.stdout


def test_version_is_that_of_the_package():
    done = invoke("--version")
    assert done.exit_code == 0 and done.stdout == f"fsr {version('fsr-gateway')}\n"


@pytest.mark.parametrize(
    "command",
    [("ask", "PICTURE", "?"), ("explain", "PICTURE", "?", "-o", "why.png"), ("load", "PICTURE", "--clients", "1")],
)
def test_method_option_without_a_value_is_refused_in_one_line(frames, command):
    done = invoke(*(frames / "f1.PNG" if part == "PICTURE" else part for part in command), "--option", "rho")
    assert (
        done.exit_code == 1 and done.stderr == "error: --option: 'rho' is no name=value; write one for each --option\n"
    )


def test_values_of_method_options_are_numbers_booleans_lists_or_texts():
    given = ["a=0.7", "b=true", "c=[1, 2]", "d=text", "e=x=y", "f="]
    choice = compression_choice("16", "even", "", "fsr", given)
    assert choice["options"] == {"a": 0.7, "b": True, "c": [1, 2], "d": "text", "e": "x=y", "f": ""}


def test_models_when_no_gateway_is_there_is_one_line(free_ports):
    done = invoke("models", "--gateway", f"127.0.0.1:{free_ports()}")
    assert (
        done.exit_code == 1 and done.stderr.startswith("error: gateway: no connection") and done.stderr.count("\n") == 1
    )


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
