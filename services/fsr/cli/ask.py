"""`fsr ask`"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fsr.cli import options
from fsr.cli.connection import Connection, connects
from fsr.cli.terminal import fail
from fsr.cli.usage_table import usage_table
from fsr.client.errors import ClientError

__all__ = ["ask"]


@connects
def ask(
    connection: Connection,
    images: Annotated[list[Path], typer.Argument(help="pictures; a folder is a video, its files are the frames")],
    question: Annotated[str, typer.Argument(help="what to ask, after the pictures")],
    budget: options.BudgetText = options.DEFAULT_BUDGET,
    spread: options.SpreadName = "even",
    fps: options.Fps = None,
    model: options.ModelName = "",
    method: options.MethodName = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of the answer")] = 64,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 0.0,
    timeout: options.Timeout = 60.0,
    as_json: options.AsJson = False,
) -> None:
    """Ask a question about pictures or a video; print the answer as it streams, then what was saved.

    example: fsr ask scene.png "What colour is the star?" --budget 16

    example: mkdir frames && ffmpeg -i clip.mp4 -vf fps=2 frames/%05d.png && fsr ask frames "What happens?" --fps 2
    """
    texts: list[str] = []
    usage = None
    try:
        choice = options.compression_choice(budget, spread, model, method)
        with connection.open() as client:
            chunks = client.stream(
                options.media_sources(images, fps),
                question,
                timeout=timeout,
                max_tokens=max_tokens,
                temperature=temperature,
                **choice,
            )
            for chunk in chunks:
                if not as_json:
                    print(chunk.text if texts else chunk.text.lstrip(), end="", flush=True)
                texts.append(chunk.text)
                usage = chunk.usage
    except ClientError as error:
        fail(error)
    if usage is None:
        fail("the gateway ended its stream early; see its logs")
    if as_json:
        print(json.dumps({"answer": "".join(texts).strip(), "usage": asdict(usage)}))
    else:
        print("\n")
        Console().print(usage_table(usage))
