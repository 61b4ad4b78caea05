"""The `fsr` command."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fsr.cli import ask, evaluate, load
from fsr.cli.ask import AsJson, BudgetText, savings_table
from fsr.cli.core_tools import run_core
from fsr.cli.local_stack import StartFailed, running
from fsr.cli.terminal import Commands, fail
from fsr.client.errors import ClientError
from fsr.client.requests import parse_budget
from fsr.client.sync import Client

__all__ = ["main"]

_SCENE = 1_100_051  # has a red star, which the examples ask about

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Ask about pictures and videos from a tenth of their visual tokens.\n\n"
    "example: fsr up\n\n"
    "in another terminal: fsr scene -o scene.png && fsr ask scene.png 'What colour is the star?' --budget 16",
)


@app.command()
def up(
    model: Annotated[str, typer.Option(help="fsr-tiny, a checkpoint folder, or a hub id")] = "fsr-tiny",
    decoders: Annotated[int, typer.Option(min=1, max=8, help="decoder replicas")] = 1,
    clip: Annotated[
        str | None, typer.Option(help="CLIP or SigLIP checkpoint that gives relevance, or none to go without")
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch device of all weights; default cpu")] = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, typer.Option(help="dtype of all weights; default fp32")
    ] = None,
    port: Annotated[int, typer.Option(min=1024, max=65000, help="gateway port; the others follow it")] = 50050,
    family_options: Annotated[
        str | None, typer.Option(metavar="JSON", help="options of the model's family, for the encoder: docs/models.md")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="folder for the services' logs; default: a new temporary one")
    ] = None,
    start_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="longest wait until all is ready; default: as long as the services live"),
    ] = None,
    stop_seconds: Annotated[
        float, typer.Option(min=0, help="time that services get to stop; then they are killed")
    ] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object of addresses when ready")] = False,
) -> None:
    """Start encoder, decoders and gateway on this machine; Ctrl-C stops them all.

    example: fsr up --decoders 2

    example: fsr up --model /models/llava-1.5-7b-hf --clip openai/clip-vit-large-patch14-336 --device cuda --dtype bf16

    example: fsr up --model /models/llava-video-7b --family-options '{"video_newlines": "row"}'
    """
    halves = [*(["--device", device] if device else []), *(["--dtype", dtype] if dtype else [])]
    encoder = ["--clip", clip] if clip else []
    if family_options is not None:
        encoder += ["--family-options", _family_options(family_options)]
    if device and device.startswith("cuda"):
        encoder += ["--num-gpus", "1"]  # else Ray hides the GPU from the replica
    folder = logs or Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    console, starting = Console(stderr=as_json), f"starting {model} (logs in {folder})"
    if not console.is_terminal:
        console.print(starting, highlight=False, soft_wrap=True)  # the clock shows on terminals alone
    # A first start may download for long.
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    waited = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    waited.add_task(starting, total=None)
    try:
        with (
            waited,
            running(
                model,
                decoders,
                port,
                folder,
                halves=halves,
                encoder=encoder,
                wait=start_seconds,
                stop_seconds=stop_seconds,
            ) as addresses,
        ):
            waited.stop()
            if as_json:
                print(json.dumps(addresses), flush=True)
            else:
                for name, address in addresses.items():
                    console.print(f"{name:17} {address}", highlight=False)
            console.print("encoder and Ray listen on every interface: docs/deploy.md")
            console.print("ready; Ctrl-C stops everything", highlight=False)
            with suppress(KeyboardInterrupt):
                signal.pause()
            console.print(f"stopping, which takes up to {stop_seconds:g} s", highlight=False)
    except StartFailed as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _family_options(text: str) -> str:
    """The same, checked: before anything starts, and in words that name the flag."""
    try:
        given = json.loads(text)
    except ValueError as error:
        fail(f"""--family-options: {text!r} is no JSON ({error}); write '{{"video_newlines": "row"}}'""")
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        fail(f"""--family-options: {text!r} is no object of texts; write '{{"video_newlines": "row"}}'""")
    return text


@app.command()
def scene(
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write")],
    seed: Annotated[int, typer.Option(min=0, help="which scene")] = _SCENE,
    as_json: AsJson = False,
) -> None:
    """Draw a test scene to ask about, and print questions with their answers. Without a seed it has a red star.

    example: fsr scene -o scene.png --seed 1100007
    """
    command = ["fsr_core.tiny", "-o", str(output), "--seed", str(seed)]
    print(run_core([*command, "--json"] if as_json else command), end="")


@app.command()
def demo(
    budget: BudgetText = "16",
    seed: Annotated[int, typer.Option(min=0, help="which scene")] = _SCENE,
    port: Annotated[int, typer.Option(min=1024, max=65000, help="gateway port; the others follow it")] = 50050,
    as_json: AsJson = False,
) -> None:
    """Start everything, ask about a drawn scene with all tokens and with a few, and show what was saved.

    example: fsr demo --budget 16
    """
    console, folder = Console(stderr=as_json), Path(tempfile.mkdtemp(prefix="fsr-demo-"))
    picture = folder / "scene.png"
    drawn = json.loads(run_core(["fsr_core.tiny", "-o", str(picture), "--seed", str(seed), "--json"]))
    console.print(f"scene drawn: {picture}", highlight=False)
    rows: list[dict[str, str]] = []
    try:
        with console.status("starting encoder, decoder and gateway"):
            context = running("fsr-tiny", 1, port, folder)
            addresses = context.__enter__()
        try:
            with Client(addresses["gateway"]) as client:
                for row in drawn["questions"]:
                    whole = client.ask(picture, row["question"], budget=1.0)
                    few = client.ask(picture, row["question"], budget=parse_budget(budget))
                    said = {"all_tokens": whole.text.strip(), "budget": few.text.strip()}
                    rows.append({"question": row["question"], "true_answer": row["answer"], **said})
        finally:
            context.__exit__(None, None, None)
    except (StartFailed, ClientError) as error:
        fail(error)
    if as_json:
        told = {"picture": str(picture), "budget": budget, "answers": rows, "usage": asdict(few.usage)}
        print(json.dumps(told))
        return
    table = Table("question", "true answer", "all tokens", f"budget {budget}")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    console.print("saved on the last question:")
    console.print(savings_table(few.usage))


ask.add_to(app)
load.add_to(app)
evaluate.add_to(app)


def main() -> None:
    """Entry point."""
    try:
        try:
            app(prog_name="fsr")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write would fail again
        sys.exit("error: the disk that is written to is full; free some space, or write elsewhere")


if __name__ == "__main__":
    main()
