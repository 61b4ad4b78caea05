"""Carries a plan out: asks, shows progress, and writes what was found into a folder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fsr.cli.calibrate import report
from fsr.cli.calibrate.answering import Answering
from fsr.cli.calibrate.changes import draw_changes
from fsr.cli.calibrate.ladder import Candidate
from fsr.cli.calibrate.plot import draw
from fsr.cli.calibrate.procedure import Plan, Procedure, Result
from fsr.cli.calibrate.run_file import RunFile
from fsr.client.errors import ClientError

__all__ = ["Connect", "Finished", "Folder", "Interrupted", "carry_out"]

#: Makes who answers, and says the name of the model.
Connect = Callable[[], AbstractAsyncContextManager[tuple[Answering, str]]]


class Interrupted(Exception):
    """The run has ended in the middle, by `cause`. The message says what is kept."""


@dataclass(frozen=True)
class Folder:
    """The files of a run."""

    path: Path

    @property
    def answers(self) -> Path:
        return self.path / "run.jsonl"

    @property
    def policy(self) -> Path:
        return self.path / "policy.yaml"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The result, the same as JSON, and what could not be drawn, and why."""

    result: Result
    figures: dict[str, Any]
    notes: list[str]


def carry_out(
    plan: Plan, connect: Connect, folder: Folder, *, pictures: int, asked_with: Mapping[str, Any], about: dict[str, Any]
) -> Finished:
    """Asks until it is decided, and writes the results.

    Raises ClientError and OSError if it fails before the first answer, and Interrupted, from the cause, after it:
    KeyboardInterrupt too.
    """
    stored: list[RunFile] = []

    async def all_of_it() -> tuple[Result, list[Path], list[str], dict[str, Any]]:
        async with connect() as (answering, model):
            with RunFile(folder.answers, {"model": model, **asked_with}) as file:
                stored.append(file)
                with _Bar(plan) as advance:
                    result = await Procedure(plan, answering, file, advance).run()
                found = about | {"model": model, "fingerprint": file.fingerprint}
            return result, *await _pictures(result, answering, folder.path / "changed", pictures), found

    try:
        result, files, notes, found = asyncio.run(all_of_it())
    except (ClientError, OSError, KeyboardInterrupt) as error:
        if stored and len(stored[0]):
            kept = f"{len(stored[0])} answers are kept in {folder.answers}; the same command goes on from there"
            raise Interrupted(kept) from error
        raise
    figures = report.as_json(plan, result, found)
    notes += _write(plan, result, figures, files, folder)
    return Finished(result=result, figures=figures, notes=notes)


class _Bar:
    """A bar for the candidate that is tested, on a terminal only."""

    def __init__(self, plan: Plan) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=len(plan.questions))

    def __enter__(self) -> Callable[[Candidate, int], None]:
        self._bar.start()
        return self._advance

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _advance(self, candidate: Candidate, answered: int) -> None:
        self._bar.update(self._task, description=f"{candidate}, questions", completed=answered)


async def _pictures(result: Result, answering: Answering, folder: Path, most: int) -> tuple[list[Path], list[str]]:
    """The files of changed answers, and a note if they could not be drawn: the result stands without them."""
    if not most:
        return [], []
    if find_spec("PIL") is None or find_spec("numpy") is None:
        return [], ["no pictures of changed answers: Pillow is missing; pip install 'fsr-gateway[core]'"]
    try:
        return await draw_changes(result, answering, folder, most), []
    except (ClientError, OSError, ValueError) as error:
        return [], [f"not all pictures of changed answers are drawn: {error}; the same command draws them"]


def _write(plan: Plan, result: Result, figures: dict[str, Any], pictures: list[Path], folder: Folder) -> list[str]:
    """Writes all files but the answers. Returns notes on those that are missing."""
    notes, plot = [], None
    if find_spec("matplotlib") is None:
        notes.append("no plot: matplotlib is missing; pip install 'fsr-gateway[eval]'")
    else:
        plot = "plot.png"
        draw(plan, result, folder.path / plot)
    names = [path.relative_to(folder.path).as_posix() for path in pictures]
    (folder.path / "report.md").write_text(report.as_markdown(plan, result, names, plot))
    (folder.path / "result.json").write_text(json.dumps(figures, indent=2) + "\n")
    if result.chosen is None:
        folder.policy.unlink(missing_ok=True)  # of an earlier run
    else:
        folder.policy.write_text(report.policy_file(plan, result.chosen))
    return notes
