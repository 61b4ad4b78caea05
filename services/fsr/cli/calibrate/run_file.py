"""Stores every answer of a calibration as it comes, so that the same command goes on after an end in the middle."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from fsr.cli.calibrate.ladder import Candidate
from fsr.cli.calibrate.questions import Question
from fsr.client.errors import InvalidRequestError

__all__ = ["Reply", "RunFile"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, how many of the visual tokens it was made from, and the fingerprint of the checkpoint."""

    text: str
    tokens: int
    kept: int
    fingerprint: str


class RunFile:
    """One answer on each line. What asks the same of the same picture finds it, whatever the target and the score are.

    Its file is locked, so that two runs do not mix.
    """

    def __init__(self, path: Path, asked_with: Mapping[str, Any]) -> None:
        """`asked_with` is what else an answer depends on, such as the model. Raises InvalidRequestError and OSError."""
        self._path, self._asked_with = path, dict(asked_with)
        self._digests: dict[Question, str] = {}
        self._replies: dict[str, Reply] = {}
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InvalidRequestError(f"--out: another run writes into {path.parent}; wait for it") from error
        try:
            self._file.seek(0)
            self._read(self._file.read())
        except InvalidRequestError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint that answered; empty before the first answer."""
        return next((reply.fingerprint for reply in self._replies.values()), "")

    def get(self, question: Question, candidate: Candidate) -> Reply | None:
        """The stored answer. Raises InvalidRequestError if the picture cannot be read."""
        return self._replies.get(self._key(question, candidate))

    def add(self, question: Question, candidate: Candidate, reply: Reply) -> None:
        """Stores an answer. Raises OSError, and InvalidRequestError if another checkpoint gave it than those before."""
        if self._replies and reply.fingerprint != self.fingerprint:
            raise InvalidRequestError(
                f"--out: {self._path} holds answers of another checkpoint of this model; name another folder"
            )
        key = self._key(question, candidate)
        line = {"key": key, "place": question.place, "candidate": str(candidate)} | asdict(reply)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self._replies[key] = reply

    def _key(self, question: Question, candidate: Candidate) -> str:
        if question not in self._digests:
            self._digests[question] = question.digest()
        parts = [self._digests[question], asdict(candidate), self._asked_with]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _read(self, content: bytes) -> None:
        whole, _, cut = content.rpartition(b"\n")  # a last line without an end was cut when the machine stopped
        if cut:
            self._file.truncate(len(content) - len(cut))
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                fields = json.loads(line)
                reply = Reply(**{name: fields[name] for name in Reply.__dataclass_fields__})
                self._replies[fields["key"]] = reply
            except (ValueError, TypeError, KeyError) as error:
                remedy = "delete the line, or name another folder"
                raise InvalidRequestError(
                    f"--out: {self._path}, line {number}: is no stored answer; {remedy}"
                ) from error
