"""`fsr ask` and `fsr explain`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from fsr.cli.connection import Connection, connects
from fsr.cli.core_tools import run_core
from fsr.cli.terminal import fail
from fsr.client.errors import ClientError, InvalidRequestError
from fsr.client.media import ImageSource, Video
from fsr.client.requests import parse_budget
from fsr.client.types import Usage

__all__ = ["AsJson", "BudgetText", "add_to", "savings_table"]

BudgetText = Annotated[str, typer.Option(help="tokens (16), a share (0.11) or auto; of each picture or video")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
ModelName = Annotated[str, typer.Option(help="model to ask, where several are served")]
MethodName = Annotated[str, typer.Option(help="compression method")]
SpreadName = Annotated[
    Literal["even", "free"],
    typer.Option(help="share the budget evenly over tiles or frames, or let it go where the evidence is"),
]
Fps = Annotated[float | None, typer.Option(help="frames that a second of the video has; default 2")]
Timeout = Annotated[float, typer.Option(help="seconds")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to the `fsr` command."""
    app.command()(connects(ask))
    app.command()(connects(explain))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def savings_table(usage: Usage) -> Table:
    """What an answer took, in four lines."""
    share = usage.visual_tokens_kept / usage.visual_tokens_in if usage.visual_tokens_in else 1
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("visual tokens", f"{usage.visual_tokens_in} -> {usage.visual_tokens_kept}  ({share:.1%} kept)")
    table.add_row("time to first token", f"{usage.seconds['ttft'] * 1000:.0f} ms")
    table.add_row("KV cache saved", _size(usage.kv_bytes_saved))
    table.add_row("on the wire", f"{_size(usage.wire_bytes)} sent, {_size(usage.wire_bytes_saved)} saved")
    table.add_row("prefill saved", f"{usage.prefill_flops_saved / 1e9:.2f} GFLOP")
    return table


def ask(
    connection: Connection,
    images: Annotated[list[Path], typer.Argument(help="pictures; a folder is a video, its files are the frames")],
    question: Annotated[str, typer.Argument(help="what to ask, after the pictures")],
    budget: BudgetText = "auto",
    spread: SpreadName = "even",
    fps: Fps = None,
    model: ModelName = "",
    method: MethodName = "fsr",
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Ask a question about pictures or a video; the answer streams, then what was saved.

    example: fsr ask scene.png "What colour is the star?" --budget 16

    example: mkdir frames && ffmpeg -i clip.mp4 -vf fps=2 frames/%05d.png && fsr ask frames "What happens?" --fps 2
    """
    text, usage = [], None
    try:
        wanted: dict[str, Any] = {"budget": parse_budget(budget), "spread": spread, "model": model, "method": method}
        wanted |= {"max_tokens": max_tokens, "temperature": temperature, "timeout": timeout}
        with connection.open() as client:
            for chunk in client.stream(_sources(images, fps), question, **wanted):
                text.append(chunk.text)
                usage = chunk.usage
                if not as_json:
                    print(chunk.text.lstrip() if len(text) == 1 else chunk.text, end="", flush=True)
    except ClientError as error:
        fail(error)
    if usage is None:
        fail("the gateway ended its stream early; see its logs")
    if as_json:
        print(json.dumps({"answer": "".join(text).strip(), "usage": asdict(usage)}))
    else:
        print("\n")
        Console().print(savings_table(usage))


def explain(
    connection: Connection,
    image: Annotated[Path, typer.Argument(help="a picture; a folder is a video, its files are the frames")],
    question: Annotated[str, typer.Argument(help="what the tokens are chosen for")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write")],
    budget: BudgetText = "auto",
    spread: SpreadName = "even",
    fps: Fps = None,
    model: ModelName = "",
    method: MethodName = "fsr",
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Draw which patches were kept, merged and dropped for a question, on the picture or on each frame.

    example: fsr explain scene.png "What colour is the star?" --budget 16 -o why.png
    """
    try:
        source = _sources([image], fps)[0]
        wanted: dict[str, Any] = {"budget": parse_budget(budget), "spread": spread, "model": model, "method": method}
        with connection.open() as client:
            told = client.compress(source, question, explain=True, timeout=timeout, **wanted).images[0]
    except ClientError as error:
        fail(error)
    if told.explanation is None:
        fail("the gateway sent no explanation; is it of the same version?")
    why = told.explanation
    plan = {
        "views": why.views,
        "index": told.index,
        "stage": why.stage,
        "merged_into": why.merged_into,
        "question": question,
    }
    pictures = [str(frame) for frame in source.frames] if isinstance(source, Video) else [str(image)]
    run_core(["fsr_core.overlay", *pictures, "--plan", "-", "-o", str(output)], json.dumps(plan))
    summary = {"output": str(output), "tokens": told.source_tokens, "kept": len(told.index), "focus": told.focus_count}
    summary |= {"scan": len(told.index) - told.focus_count, "merged": told.merged_count}
    print(json.dumps(summary) if as_json else f"{output}: kept {len(told.index)} of {told.source_tokens} tokens")


def _sources(paths: list[Path], fps: float | None) -> list[ImageSource]:
    """Pictures as they are, folders as videos. Raises InvalidRequestError."""
    rate = 2.0 if fps is None else fps
    found: list[ImageSource] = [Video.from_folder(path, rate) if path.is_dir() else path for path in paths]
    if fps is not None and not any(isinstance(source, Video) for source in found):
        raise InvalidRequestError("--fps: there is no video; give a folder of frames, or leave it out")
    return found
