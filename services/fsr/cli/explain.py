"""`fsr explain`"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fsr.cli import options
from fsr.cli.connection import Connection, connects
from fsr.cli.core_tools import run_core
from fsr.cli.terminal import fail
from fsr.cli.usage_table import applied
from fsr.client.errors import ClientError
from fsr.client.media import Video

__all__ = ["explain"]


@connects
def explain(
    connection: Connection,
    image: Annotated[Path, typer.Argument(help="a picture; a video file, or a folder of frames, is a video")],
    question: Annotated[str, typer.Argument(help="question that the tokens are chosen for")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write")],
    budget: options.BudgetText = options.DEFAULT_BUDGET,
    spread: options.SpreadName = "even",
    fps: options.Fps = None,
    model: options.ModelName = "",
    method: options.MethodName = "",
    option: options.MethodOption = None,
    timeout: options.Timeout = 60.0,
    as_json: options.AsJson = False,
) -> None:
    """Draw which patches were kept, merged and dropped for a question, on the picture or on each frame.

    example: fsr explain scene.png "What colour is the star?" --budget 16 -o why.png
    """
    try:
        source = options.media_sources([image], fps)[0]
        choice = options.compression_choice(budget, spread, model, method, option)
        with connection.open() as client:
            compression = client.compress(source, question, explain=True, timeout=timeout, **choice)
    except ClientError as error:
        fail(error)
    tokens = compression.images[0]
    explanation = tokens.explanation
    if explanation is None:
        fail("the gateway sent no explanation; check that gateway and client have the same version")
    plan = {
        "views": explanation.views,
        "index": tokens.index,
        "stage": explanation.stage,
        "merged_into": explanation.merged_into,
        "question": question,
    }
    with TemporaryDirectory() as folder:
        pictures = _files(source, Path(folder)) if isinstance(source, Video) else [str(image)]
        run_core(["fsr_core.overlay", *pictures, "--plan", "-", "-o", str(output)], json.dumps(plan))
    kept = len(tokens.index)
    if as_json:
        counts = {"tokens": tokens.source_tokens, "kept": kept, "focus": tokens.focus_count}
        counts |= {"scan": kept - tokens.focus_count, "merged": tokens.merged_count}
        chosen = {"budget": compression.budget, "budget_chosen_by": compression.budget_chosen_by}
        chosen |= {"method": compression.method, "method_chosen_by": compression.method_chosen_by}
        print(json.dumps({"output": str(output)} | counts | chosen))
    else:
        print(f"{output}: kept {kept} of {tokens.source_tokens} tokens: {applied(compression)}")


def _files(video: Video, folder: Path) -> list[str]:
    """Paths of the frames. Those of a video file are written into `folder`."""
    paths = []
    for number, frame in enumerate(video.frames):
        path = frame
        if isinstance(frame, bytes):
            path = folder / f"{number:05}.jpg"
            path.write_bytes(frame)
        paths.append(str(path))
    return paths
