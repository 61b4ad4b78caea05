"""Writes questions that the canary asked into a folder, in the form that `fsr calibrate` reads. Off by default: the
folder holds callers' pictures and questions.

It takes questions of one turn about one picture or video; a system message is left out. Only the gateway's user may
read the files. The folder never grows above its bound, across restarts too, and nothing in it is ever deleted. A disk
that fails costs no request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import types_pb2

__all__ = ["CanaryExport", "Question", "question_of"]

log = structlog.get_logger()
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}  # by the first bytes of a file
DEFAULT_RATE = 2.0  # frames per second, where a request names none


@dataclass(frozen=True)
class Question:
    """A question of one turn about one picture or video."""

    image: types_pb2.Image
    text: str


def question_of(messages: Sequence[types_pb2.Message], images: Sequence[types_pb2.Image]) -> Question | None:
    """The question of a request, without its system message; None if it has several turns, or not one picture."""
    turns = [message for message in messages if message.role != types_pb2.ROLE_SYSTEM]
    if len(turns) != 1 or len(images) != 1:
        return None
    texts = [part.text for part in turns[0].parts if part.HasField("text")]
    text = "\n".join(texts)
    return Question(images[0], text) if text.strip() else None


class CanaryExport:
    """A folder with `questions.jsonl`, and the files that it names."""

    def __init__(self, folder: Path, most_bytes: int, metrics: Metrics) -> None:
        """Raises OSError if the folder cannot be made or written."""
        self._folder, self._most_bytes, self._metrics = folder, most_bytes, metrics
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / "questions.jsonl"
        self._append(b"")
        self._bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self._is_full = False

    async def add(self, question: Question | None, about: Mapping[str, Any]) -> None:
        """Writes a question, with what the canary found `about` it, and counts it."""
        outcome = "unsuitable"
        if question is not None:
            try:
                outcome = "written" if await asyncio.to_thread(self._write, question, about) else "full"
            except OSError as error:
                outcome = "failed"
                log.warning("canary not exported", reason=error.strerror, folder=str(self._folder))
        if outcome == "full" and not self._is_full:
            self._is_full = True
            log.warning("canary export is full", folder=str(self._folder), remedy="take its files away, and restart")
        self._metrics.canary_exported.labels(outcome).inc()

    def _write(self, question: Question, about: Mapping[str, Any]) -> bool:
        """Returns False if there is no room. The line comes last, so that it never names a file that is missing."""
        files, fields = _files(question.image)
        line = json.dumps({**fields, "question": question.text, "canary": dict(about)}).encode() + b"\n"
        new = {name: content for name, content in files.items() if not (self._folder / name).exists()}
        size = sum(map(len, new.values())) + len(line)
        if self._bytes + size > self._most_bytes:
            return False
        for name, content in new.items():
            path = self._folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.touch(mode=0o600)
            part.write_bytes(content)
            part.rename(path)
        self._append(line)
        self._bytes += size
        return True

    def _append(self, line: bytes) -> None:
        with os.fdopen(os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as file:
            file.write(line)


def _files(image: types_pb2.Image) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of a picture or video by name, and the fields of the line that names them. A name is a hash."""
    if not image.frames:
        name = f"pictures/{hashlib.sha256(image.data).hexdigest()[:32]}{_suffix(image.data)}"
        return {name: image.data}, {"picture": name}
    digest = hashlib.sha256(b"".join(hashlib.sha256(frame).digest() for frame in image.frames)).hexdigest()
    folder = f"videos/{digest[:32]}"
    frames = {f"{folder}/{number:05}{_suffix(frame)}": frame for number, frame in enumerate(image.frames)}
    return frames, {"video": folder, "fps": image.frames_per_second or DEFAULT_RATE}


def _suffix(content: bytes) -> str:
    return _SUFFIXES.get(content[:2], ".jpg")
