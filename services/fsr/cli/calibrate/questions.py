"""The questions of a calibration: a file with one on each line, or one question about each picture of a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsr.client.errors import InvalidRequestError
from fsr.client.media import ImageSource, Video, is_video_file

__all__ = ["Question", "read_questions"]

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_FIELDS = ("picture", "video", "fps", "question", "answer", "canary")
_LINE = '{"picture": "a.jpg", "question": "What is it?"}'


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question. `place` is where it was found, for messages; `answers` are the right ones, if they are known."""

    place: str
    path: Path
    is_video: bool
    fps: float
    text: str
    answers: tuple[str, ...]

    def source(self) -> ImageSource:
        """What is sent. Raises InvalidRequestError, which names the place."""
        if not self.is_video:
            return self.path
        try:
            reader = Video.from_folder if self.path.is_dir() else Video.from_file
            return reader(self.path, self.fps)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{self.place}: {error}") from error

    def digest(self) -> str:
        """Equal for questions that ask the same about the same picture or video. Raises InvalidRequestError."""
        digest = hashlib.sha256(json.dumps([self.text, self.fps if self.is_video else None]).encode())
        try:
            files = sorted(filter(Path.is_file, self.path.iterdir())) if self.path.is_dir() else [self.path]
            for path in files:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise InvalidRequestError(f"{self.place}: cannot read {self.path} ({error.strerror})") from error
        return digest.hexdigest()


def read_questions(path: Path, question: str | None, fps: float | None) -> list[Question]:
    """The questions of a file of JSON lines, or `question` about each picture and video file of a folder.

    `question` also stands in for lines that have none, and `fps` for videos that have none. Raises InvalidRequestError,
    which names the line, for what cannot be used.
    """
    if question is not None and not question.strip():
        raise InvalidRequestError("--question: is empty; write what to ask")
    rate = 2.0 if fps is None else fps
    if path.is_dir():
        if question is None:
            raise InvalidRequestError(f"--question: {path} is a folder; give the question to ask about its pictures")
        found = _of_folder(path, question, rate)
    else:
        found = _of_file(path, question, rate)
    if fps is not None and not any(one.is_video for one in found):
        raise InvalidRequestError("--fps: there is no video among the questions; leave it out")
    return found


def _of_folder(folder: Path, text: str, fps: float) -> list[Question]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PICTURES or is_video_file(path)]
    if not files:
        raise InvalidRequestError(f"{folder}: holds no pictures; put JPEG, PNG or WebP files there, or give a file")
    return [
        Question(place=str(path), path=path, is_video=is_video_file(path), fps=fps, text=text, answers=())
        for path in files
    ]


def _of_file(path: Path, text: str | None, fps: float) -> list[Question]:
    try:
        content = path.read_text("utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path}: is no text in UTF-8; write one question a line: {_LINE}") from error
    questions = []
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: a text may hold its other separators
        if line.strip():
            questions.append(_Line(path, number, line).question(text, fps))
    if not questions:
        raise InvalidRequestError(f"{path}: is empty; write one question a line: {_LINE}")
    _check_answers(questions)
    return questions


def _check_answers(questions: list[Question]) -> None:
    with_answer = next((one for one in questions if one.answers), None)
    without = next((one for one in questions if not one.answers), None)
    if with_answer and without:
        remedy = "give every line one, or none"
        raise InvalidRequestError(f"{without.place}: has no answer, but {with_answer.place} has one; {remedy}")


class _Line:
    """One line of the file, and the errors that name it."""

    def __init__(self, path: Path, number: int, line: str) -> None:
        self._place, self._folder = f"{path}, line {number}", path.parent
        try:
            self._fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", type(error).__name__)
            raise self._wrong(f"is no JSON ({reason}); write {_LINE}") from error
        if not isinstance(self._fields, dict):
            raise self._wrong(f"is no JSON object; write {_LINE}")
        if unknown := next((name for name in self._fields if name not in _FIELDS), None):
            raise self._wrong(f"{unknown!r:.60} is no field; use {', '.join(_FIELDS[:-1])}")

    def question(self, text: str | None, fps: float) -> Question:
        kinds = [name for name in ("picture", "video") if name in self._fields]
        if len(kinds) != 1:
            raise self._wrong("give picture or video, one of the two")
        path = self._folder / self._text(kinds[0])
        is_video = kinds[0] == "video" or is_video_file(path)
        if not self._exists(path):
            raise self._wrong(f"{kinds[0]}: there is no {path}; a path counts from the folder of the file")
        if path.is_dir() and not is_video:
            raise self._wrong(f"picture: {path} is a folder; if it holds the frames of a video, name it as video")
        if text is None and "question" not in self._fields:
            raise self._wrong("has no question; write one, or give --question for all")
        rate = self._fields.get("fps", fps)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
            raise self._wrong(f"fps: {rate!r:.60} is no number of frames per second; try 2")
        return Question(
            place=self._place,
            path=path,
            is_video=is_video,
            fps=float(rate),
            text=self._text("question") if "question" in self._fields else text or "",
            answers=self._answers(),
        )

    def _answers(self) -> tuple[str, ...]:
        """One text, or a list of texts of which each is right."""
        given: Any = self._fields.get("answer")
        if given is None:
            return ()
        answers = given if isinstance(given, list) else [given]
        if not answers or not all(isinstance(one, str) and one.strip() for one in answers):
            raise self._wrong("answer: is neither a text nor a list of texts; write the right answer as text")
        return tuple(answers)

    def _text(self, name: str) -> str:
        value = self._fields[name]
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(f"{name}: {value!r:.60} is no text; write it in quotes")
        return value

    @staticmethod
    def _exists(path: Path) -> bool:
        try:
            return path.exists()
        except (OSError, ValueError):  # a name that is too long, or has a zero byte
            return False

    @property
    def _wrong(self) -> Callable[[str], InvalidRequestError]:
        return lambda message: InvalidRequestError(f"{self._place}: {message}")
