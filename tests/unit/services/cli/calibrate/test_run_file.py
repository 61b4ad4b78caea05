from dataclasses import replace

import pytest

from fsr.cli.calibrate.ladder import ALL_TOKENS, Candidate
from fsr.cli.calibrate.questions import Question
from fsr.cli.calibrate.run_file import Reply, RunFile
from fsr.client.errors import InvalidRequestError

REPLY = Reply(text="top right", tokens=144, kept=16, fingerprint="f")
FEW = Candidate(budget=16, method="fsr")


@pytest.fixture
def question(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    return Question(place="a", path=tmp_path / "a.png", is_video=False, fps=2.0, text="Where?", answers=())


@pytest.fixture
def opened(tmp_path):
    return lambda **asked: RunFile(tmp_path / "run.jsonl", asked)


def test_answers_are_there_when_the_file_is_opened_again(opened, question):
    with opened(model="m") as file:
        file.add(question, FEW, REPLY)
    with opened(model="m") as file:
        assert (file.get(question, FEW), len(file), file.fingerprint) == (REPLY, 1, "f")
        assert file.get(question, ALL_TOKENS) is None
        assert file.get(replace(question, text="What?"), FEW) is None


def test_answer_of_another_model_is_not_found(opened, question):
    with opened(model="m") as file:
        file.add(question, FEW, REPLY)
    with opened(model="n") as file:
        assert file.get(question, FEW) is None


def test_last_line_when_it_was_cut_is_asked_again(opened, question, tmp_path):
    with opened() as file:
        file.add(question, FEW, REPLY)
        file.add(question, ALL_TOKENS, REPLY)
    path = tmp_path / "run.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with opened() as file:
        assert (file.get(question, FEW), file.get(question, ALL_TOKENS)) == (REPLY, None)
        file.add(question, ALL_TOKENS, REPLY)
    with opened() as file:
        assert len(file) == 2


def test_line_when_it_is_damaged_is_named(opened, tmp_path):
    (tmp_path / "run.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(InvalidRequestError, match=r"--out: .*run.jsonl, line 1: is no stored answer"):
        opened()


def test_answer_of_another_checkpoint_is_refused(opened, question):
    with opened() as file:
        file.add(question, FEW, REPLY)
        with pytest.raises(InvalidRequestError, match=r"--out: .* holds answers of another checkpoint"):
            file.add(question, ALL_TOKENS, replace(REPLY, fingerprint="g"))


def test_second_run_in_the_same_folder_is_refused(opened):
    with opened(), pytest.raises(InvalidRequestError, match="--out: another run writes into"):
        opened()
