import sys

import pytest

from fsr.cli.calibrate.scoring import Pair, Scorer
from fsr.client.errors import InvalidRequestError


def score(kind, answer, *references, command=None):
    return Scorer(kind, command).scores([Pair("?", answer, references)])[0]


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("Top right.", " top  right", 1, 1),
        ("a red star", "the red star", 0, 1),
        ("red star", "blue star", 0, 0.5),
        ("5", "-5", 0, 1),
        ("", "", 1, 1),
        ("", "red", 0, 0),
        ("the", "a", 0, 0),
        ("star star", "star", 0, 2 / 3),
    ],
)
def test_scores_of_an_answer(answer, reference, exact, f1):
    assert score("exact", answer, reference) == exact
    assert score("f1", answer, reference) == pytest.approx(f1)


def test_score_when_several_answers_are_right_is_that_of_the_best():
    assert score("exact", "dog", "a cat", "Dog") == 1


PRINTS_LENGTHS = "import json, sys\nfor line in sys.stdin: print(min(1, len(json.loads(line)['answer']) / 10))"


def command(code):
    return f'{sys.executable} -c "{code}"'


def test_command_gets_lines_and_gives_numbers():
    scorer = Scorer("exact", command(PRINTS_LENGTHS))
    pairs = [Pair("?", "x" * length, ("y\nz",)) for length in (5, 2, 5)]
    assert scorer.scores(pairs) == [0.5, 0.2, 0.5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no-such-program-here", "cannot run"),
        (command("raise SystemExit('no licence')"), "ended with 1: no licence"),
        (command("pass"), "printed 0 numbers for 1 answers"),
        (command("print(2)"), "printed '2', which is no number from 0 to 1"),
        (command("print('nan')"), "printed 'nan'"),
        ("'unclosed", "is no command line"),
        (" ", "is empty"),
    ],
)
def test_command_when_it_fails_is_one_line(line, message):
    with pytest.raises(InvalidRequestError, match=f"^--score-command: .*{message}") as raised:
        score("exact", "a", "b", command=line)
    assert "\n" not in str(raised.value)
