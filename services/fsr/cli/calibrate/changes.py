"""The pictures of questions whose answers compression changed, side by side with what was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsr.cli.calibrate.answering import Answering
from fsr.cli.calibrate.procedure import Change, Outcome, Result, Verdict
from fsr.client.media import Video

__all__ = ["draw_changes"]


async def draw_changes(result: Result, answering: Answering, folder: Path, most: int) -> list[Path]:
    """Draws at most so many, and returns the files. Raises ClientError, OSError, and ValueError for a damaged picture.
    Needs Pillow.

    Those of the chosen budget come first, then those of budgets that do not keep the target, the largest first.
    """
    outcomes = [result.chosen] if result.chosen else []
    outcomes += [one for one in result.tested if one.verdict is not Verdict.KEPT]
    changes = [(one, change) for one in outcomes for change in one.changes][:most]
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[0-9][0-9]-*.png"):
        old.unlink()
    files = []
    for number, (outcome, change) in enumerate(changes, 1):
        name = f"{number:02}-{outcome.candidate.method}-{outcome.candidate.budget}.png"
        files.append(folder / name)
        (await _page(outcome, change, answering)).save(files[-1])
    return files


async def _page(outcome: Outcome, change: Change, answering: Answering) -> Any:
    from fsr_core.side_by_side import side_by_side

    kept = await answering.kept_picture(change.question, outcome.candidate)
    title = f"{change.question.text}  ({change.question.place})"
    return side_by_side(
        title,
        (f"all tokens: {change.whole}", _picture(change)),
        (f"{outcome.candidate}: {change.compressed}", kept),
    )


def _picture(change: Change) -> Any:
    """The picture, of a video its first frame."""
    from fsr_core.pictures import read_picture

    source = change.question.source()
    file: Any = source.frames[0] if isinstance(source, Video) else source
    return read_picture(file if isinstance(file, bytes) else Path(file).read_bytes())
