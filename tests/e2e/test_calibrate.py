"""`fsr calibrate` against a gateway: what was kept of pictures, a gateway that dies, and the canary's questions."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fsr.cli.main import app
from fsr.client import Client
from helpers.waiting import until

QUESTION = "Where is the red star?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures(700, 40)):
        (folder / f"{number}.png").write_bytes(picture)
    return folder


@pytest.fixture(scope="module")
def gateway(system, spawn, tmp_path_factory):
    """A second gateway in front of the system's replicas, whose canary exports what it compares."""
    export = tmp_path_factory.mktemp("export")
    replicas = ("--encoders", system["encoder"], "--decoders", f"{system['decoder-0']},{system['decoder-1']}")
    canary = ("--canary-share", "1", "--canary-export", str(export), "--canary-export-all")
    service = spawn("gateway", *replicas, *canary, "--discovery-seconds", "0.3")
    service.wait_until_serving()
    service.export = export
    return service


def command(questions, address, out, *options):
    few = ("--methods", "fsr", "--max-tokens", "4", "--budgets", "72,1", "--target", "0.6", "--json")
    return ["calibrate", str(questions), "--gateway", address, "--out", str(out), *few, *options]


def calibrate(*arguments):
    return CliRunner().invoke(app, command(*arguments), prog_name="fsr")


def test_run_on_a_folder_of_pictures_shows_what_was_kept(system, folder, tmp_path):
    done = calibrate(folder, system["gateway"], tmp_path, "--question", QUESTION)
    found = json.loads(done.stdout)
    assert (done.exit_code, done.stderr) == (0, "")
    assert found["chosen"]["default_method"] == "fsr" and found["fingerprint"]
    changed = sum(len(one["changed"]) for one in found["candidates"] if one["verdict"] != "kept")
    assert len(list((tmp_path / "changed").glob("*.png"))) >= min(12, changed)


def test_run_when_the_gateway_dies_keeps_its_answers_and_goes_on_later(gateway, folder, tmp_path):
    arguments = command(folder, gateway.address, tmp_path, "--question", QUESTION)
    process = subprocess.Popen([sys.executable, "-m", "fsr.cli.main", *arguments], stderr=subprocess.PIPE, text=True)
    answers = tmp_path / "run.jsonl"
    until(lambda: process.poll() is not None or (answers.exists() and answers.read_bytes().count(b"\n") >= 2))
    gateway.end()
    _, errors = process.communicate(timeout=180)
    before = answers.read_bytes()
    assert process.returncode == 1 and errors.count("\n") == 1
    assert f"{before.count(10)} answers are kept in {answers}; the same command goes on" in errors
    gateway.start()
    gateway.wait_until_serving()
    assert calibrate(folder, gateway.address, tmp_path, "--question", QUESTION).exit_code == 0
    assert answers.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "nothing"), "error: --methods: 'nothing' is unknown; use fsr, "),
        (("--model", "nothing"), "error: --model: the gateway does not serve 'nothing'; name one of "),
        (("--option", "nothing=1"), "error: --option: fsr has no option 'nothing'"),
        (("--gateway", "127.0.0.1:9"), "error: gateway: no connection"),
    ],
)
def test_run_when_an_option_is_wrong_ends_with_one_line(system, folder, tmp_path, options, message):
    done = calibrate(folder, system["gateway"], tmp_path, "--question", QUESTION, *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_run_when_the_policy_forbids_all_tokens_says_what_to_do(system, spawn, folder, tmp_path):
    replicas = ("--encoders", system["encoder"], "--decoders", system["decoder-0"])
    bounded = spawn("gateway", *replicas, "--max-tokens", "72")
    bounded.wait_until_serving()
    done = calibrate(folder, bounded.address, tmp_path, "--question", QUESTION)
    assert done.exit_code == 1 and "use a key whose policy allows all tokens" in done.stderr


def test_run_when_the_gateway_has_no_room_asks_again(system, spawn, folder, tmp_path):
    replicas = ("--encoders", system["encoder"], "--decoders", system["decoder-0"])
    narrow = spawn("gateway", *replicas, "--max-requests", "1", "--max-waiting", "0")
    narrow.wait_until_serving()
    patient = ("--question", QUESTION, "--budgets", "72", "--clients", "3", "--timeout", "300", "--pictures", "0")
    assert calibrate(folder, narrow.address, tmp_path, *patient).exit_code == 0
    assert narrow.metric("fsr_admission_refused_total") > 0


def test_questions_that_the_canary_exports_are_calibrated_on(gateway, system, folder, tmp_path):
    file = gateway.export / "questions.jsonl"
    with Client(gateway.address) as client:
        for number in range(4):
            before = file.read_bytes().count(b"\n")
            client.ask(folder / f"{number}.png", QUESTION, budget=1, max_tokens=4)
            until(lambda before=before: file.read_bytes().count(b"\n") > before)
    exported = file.read_bytes().count(b"\n")
    done = calibrate(file, system["gateway"], tmp_path, "--target", "0.1")
    assert json.loads(done.stdout)["questions"]["given"] == exported, done.stderr
