"""The file of questions: what it may hold, and the line that a mistake names."""

import json

import pytest

from fsr.cli.calibrate.questions import read_questions
from fsr.client.errors import InvalidRequestError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.PNG", "clip.mp4"):
        (tmp_path / name).write_bytes(b"x" + name.encode())
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/1.png").write_bytes(b"f")
    return tmp_path


def read(folder, *lines, question=None, fps=None):
    file = folder / "questions.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return read_questions(file, question, fps)


def test_line_when_it_is_whole_becomes_a_question(folder):
    (question,) = read(folder, {"picture": "a.jpg", "question": "What?", "answer": ["a dog", "dog"]})
    assert (question.path, question.text, question.answers) == (folder / "a.jpg", "What?", ("a dog", "dog"))
    assert question.place.endswith("questions.jsonl, line 1")


def test_lines_when_they_are_blank_count_for_the_numbers_alone(folder):
    one, two = read(folder, "", {"picture": "a.jpg", "question": "?"}, " ", {"picture": "b.PNG", "question": "?"}, "")
    assert (one.place[-6:], two.place[-6:]) == ("line 2", "line 4")


def test_video_is_a_file_or_a_folder_of_frames(folder):
    lines = {"video": "frames", "question": "?", "fps": 1}, {"video": "clip.mp4", "question": "?"}
    frames, file = read(folder, *lines, fps=4.0)
    assert frames.is_video and file.is_video
    assert (frames.fps, file.fps) == (1.0, 4.0)
    assert frames.source().frames == [folder / "frames/1.png"]


def test_folder_of_pictures_gets_one_question(folder):
    assert [one.path.name for one in read_questions(folder, "What?", None)] == ["a.jpg", "b.PNG", "clip.mp4"]
    assert {one.text for one in read_questions(folder, "What?", None)} == {"What?"}


def test_digest_is_of_picture_and_question(folder):
    def digest(**line):
        (question,) = read(folder, {"picture": "a.jpg", "question": "?"} | line)
        return question.digest()

    before = digest()
    assert digest(answer="x") == before
    assert digest(question="!") != before
    (folder / "a.jpg").write_bytes(b"another picture")
    assert digest() != before


GOOD = {"picture": "a.jpg", "question": "?"}
MISTAKES = {
    "empty": ([""], "questions.jsonl: is empty"),
    "broken": ([GOOD, '{"picture": "a.jpg"'], "line 2: is no JSON"),
    "no object": (["[1]"], "line 1: is no JSON object"),
    "deep": (["[" * 100_000], "line 1: is no JSON"),
    "unknown field": ([GOOD | {"anwser": "x"}], "line 1: 'anwser' is no field; use picture"),
    "no picture": ([{"question": "?"}], "line 1: give picture or video"),
    "both": ([GOOD | {"video": "frames"}], "line 1: give picture or video"),
    "missing picture": ([GOOD, GOOD | {"picture": "z.jpg"}], "line 2: picture: there is no "),
    "a name with a zero byte": ([GOOD | {"picture": "\0"}], "line 1: picture: there is no "),
    "picture is a folder": ([GOOD | {"picture": "frames"}], "line 1: picture: .* is a folder"),
    "picture is a number": ([GOOD | {"picture": 3}], "line 1: picture: 3 is no text"),
    "no question": ([{"picture": "a.jpg"}], "line 1: has no question"),
    "blank question": ([GOOD | {"question": " "}], "line 1: question: ' ' is no text"),
    "fps": ([{"video": "frames", "question": "?", "fps": 0}], "line 1: fps: 0 is no number of frames"),
    "answer": ([GOOD | {"answer": []}], "line 1: answer: is neither"),
    "some answers": ([GOOD | {"answer": "x"}, GOOD], "line 2: has no answer, but .*line 1 has one"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_that_names_its_place(folder, name):
    lines, message = MISTAKES[name]
    with pytest.raises(InvalidRequestError, match=message) as raised:
        read(folder, *lines)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.jsonl", None, None), "cannot read .*missing.jsonl"),
        ((".", None, None), "--question: .* is a folder"),
        ((".", " ", None), "--question: is empty"),
        (("frames", "?", 3.0), "--fps: there is no video"),
        (("nothing", "?", None), "holds no pictures"),
        (("binary.jsonl", None, None), "is no text in UTF-8"),
    ],
)
def test_mistake_outside_of_lines_names_the_option_or_the_file(folder, arguments, message):
    (folder / "nothing").mkdir()
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InvalidRequestError, match=message):
        read_questions(folder / arguments[0], *arguments[1:])
