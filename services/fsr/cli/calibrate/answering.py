"""Who answers the questions: a running gateway, or a checkpoint in this process."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fsr.cli.calibrate.ladder import ALL_TOKENS, Candidate
from fsr.cli.calibrate.questions import Question
from fsr.cli.calibrate.run_file import Reply
from fsr.client.aio import AsyncClient
from fsr.client.errors import InvalidRequestError, OverloadedError
from fsr.client.media import Video
from fsr.client.requests import GenerateOptions
from fsr.client.types import Answer
from fsr.v1 import gateway_pb2

if TYPE_CHECKING:
    from PIL.Image import Image

    from fsr_core.plug.local_model import LocalAnswer, LocalModel

__all__ = ["Answering", "ByCheckpoint", "ByGateway", "check_methods", "checked_model"]

_FIELDS = {"options": "--option", "method": "--methods", "max_tokens": "--max-tokens"}


class Answering(Protocol):
    """Answers a question with a candidate's budget and method, greedily."""

    async def ask(self, question: Question, candidate: Candidate) -> Reply:
        """Raises ClientError; a question's own mistake is an InvalidRequestError that names its place."""

    async def kept_picture(self, question: Question, candidate: Candidate) -> Image:
        """The picture, or the frames of the video, with the kept tokens marked. Raises ClientError. Needs Pillow."""


def checked_model(models: Sequence[gateway_pb2.AvailableModel], model: str, methods: Sequence[str]) -> str:
    """The model that is meant. Raises InvalidRequestError if it is not clear or not served, or lacks a method."""
    names = ", ".join(one.model for one in models)
    if not models:
        raise InvalidRequestError("no model can be asked; encoders and decoders may be starting: see fsr models")
    if not model and len(models) > 1:
        raise InvalidRequestError(f"--model: the gateway serves several; name one of {names}")
    found = next((one for one in models if not model or one.model == model), None)
    if found is None:
        raise InvalidRequestError(f"--model: the gateway does not serve {model!r}; name one of {names}")
    check_methods(methods, found.methods)
    return found.model


def check_methods(methods: Sequence[str], known: Sequence[str]) -> None:
    """Raises InvalidRequestError for a method that is not known. A gateway knows none while no encoder answers."""
    unknown = next((name for name in methods if known and name not in known), None)
    if unknown is not None:
        raise InvalidRequestError(f"--methods: {unknown!r} is unknown; use {', '.join(known)}")


class ByGateway:
    """Asks a gateway. What it has no room for is asked again when it says so, for at most `timeout` seconds."""

    def __init__(self, client: AsyncClient, options: GenerateOptions, timeout: float) -> None:
        self._client, self._options, self._timeout = client, options, timeout

    async def ask(self, question: Question, candidate: Candidate) -> Reply:
        answer = await self._answer(question, candidate, self._options)
        usage = answer.usage
        return Reply(
            text=answer.text.strip(),
            tokens=usage.visual_tokens_in,
            kept=usage.visual_tokens_kept,
            fingerprint=answer.fingerprint,
        )

    async def kept_picture(self, question: Question, candidate: Candidate) -> Image:
        from fsr_core.overlay import plans, sheet
        from fsr_core.pictures import read_picture

        answer = await self._answer(question, candidate, self._options | {"explain": True, "max_tokens": 1})
        kept = answer.images[0]
        explanation = kept.explanation
        if explanation is None:
            raise InvalidRequestError("the gateway sent no explanation; check that it has this client's version")
        source = question.source()
        files: list[Any] = list(source.frames) if isinstance(source, Video) else [source]
        pictures = [file if isinstance(file, Path) else read_picture(file) for file in files]
        return sheet(pictures, plans(explanation.views, kept.index, explanation.stage, explanation.merged_into))

    async def _answer(self, question: Question, candidate: Candidate, options: GenerateOptions) -> Answer:
        source, end = question.source(), time.monotonic() + self._timeout
        choice: GenerateOptions = {"budget": candidate.budget}
        if candidate.method is not None:
            choice |= {"method": candidate.method, "options": candidate.options}
        while True:
            try:
                return await self._client.ask(source, question.text, timeout=self._timeout, **(options | choice))
            except InvalidRequestError as error:
                raise InvalidRequestError(_named(str(error), question, candidate)) from error
            except OverloadedError as error:
                pause = (error.retry_after or 1.0) * (1 + random.random())
                if time.monotonic() + pause > end:
                    raise
                await asyncio.sleep(pause)


def _named(message: str, question: Question, candidate: Candidate) -> str:
    """A message of the gateway, with the option that it is about, else with the place of the question."""
    field, _, rest = message.partition(": ")
    if field in _FIELDS:
        return f"{_FIELDS[field]}: {rest}"
    if field == "budget" and candidate == ALL_TOKENS:  # all other answers are held to those with all tokens
        message += "; to calibrate, use a key whose policy allows all tokens"
    return f"{question.place}: {message}"


class ByCheckpoint:
    """Asks a checkpoint in this process, one question at a time. It takes pictures only."""

    def __init__(self, model: LocalModel, max_tokens: int) -> None:
        self._model, self._max_tokens, self._one_at_a_time = model, max_tokens, asyncio.Lock()

    async def ask(self, question: Question, candidate: Candidate) -> Reply:
        async with self._one_at_a_time:
            answer = await asyncio.to_thread(self._answer, question, candidate)
        kept = answer.kept.images[0]
        return Reply(
            text=answer.text, tokens=len(kept.merged_into), kept=len(kept), fingerprint=self._model.fingerprint
        )

    async def kept_picture(self, question: Question, candidate: Candidate) -> Image:
        async with self._one_at_a_time:
            answer = await asyncio.to_thread(self._answer, question, candidate)
        return answer.kept.picture(self._picture(question))

    def _answer(self, question: Question, candidate: Candidate) -> LocalAnswer:
        from fsr_core.compressor import create

        picture = self._picture(question)
        method = None if candidate.method is None else create(candidate.method, **candidate.options)
        try:
            return self._model.ask(
                picture, question.text, budget=candidate.budget, method=method, max_tokens=self._max_tokens
            )
        except (ValueError, RuntimeError) as error:  # RuntimeError: of torch, as where memory does not suffice
            reason = str(error).partition("\n")[0]
            raise InvalidRequestError(f"{question.place}: {reason}") from error

    @staticmethod
    def _picture(question: Question) -> Image:
        from fsr_core.pictures import read_picture

        if question.is_video:
            raise InvalidRequestError(f"{question.place}: is a video; ask a gateway instead of --checkpoint")
        try:
            return read_picture(question.path.read_bytes())
        except (OSError, ValueError) as error:
            raise InvalidRequestError(f"{question.place}: cannot read {question.path} ({error})") from error
