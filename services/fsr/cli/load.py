"""`fsr load`"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from fsr.cli.connection import Connection, connects
from fsr.cli.load_generator import Outcome, Plan, drive, summarise
from fsr.cli.load_report import Row, as_json, check_plot, markdown, plot
from fsr.cli.terminal import fail
from fsr.client.errors import ClientError, InvalidRequestError
from fsr.client.media import read_picture
from fsr.client.requests import parse_budget

__all__ = ["add_to"]

_STANDARD_OUTPUT = Path("-")


def add_to(app: typer.Typer) -> None:
    """Adds the command to the `fsr` command."""
    app.command()(connects(load))


def load(
    connection: Connection,
    images: Annotated[list[Path], typer.Argument(help="pictures, asked about in turn")],
    question: Annotated[str, typer.Option(help="what to ask")] = "What is in the picture?",
    clients: Annotated[str, typer.Option(help="closed loop: clients at a time, as 1,4,16")] = "",
    rate: Annotated[str, typer.Option(help="open loop: requests a second, as 2,8")] = "",
    budget: Annotated[str, typer.Option(help="budgets to compare, as 16,0.5,auto")] = "auto",
    method: Annotated[str, typer.Option(help="compression method")] = "fsr",
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="answers of exactly --max-tokens")] = False,
    seconds: Annotated[float, typer.Option(help="longest time a run")] = 30.0,
    requests: Annotated[int, typer.Option(min=1, help="most requests a run")] = 100_000,
    warmup: Annotated[int, typer.Option(min=0, help="first answers of a run, not counted")] = 5,
    bound: Annotated[float, typer.Option(help="seconds up to which an answer counts for goodput")] = 1.0,
    timeout: Annotated[float, typer.Option(help="deadline of a request, seconds")] = 60.0,
    seed: Annotated[int, typer.Option(help="of the arrivals of an open loop")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="file for everything measured; - prints it instead of the table")
    ] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="file for the table")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="PNG for goodput and latency")] = None,
) -> None:
    """Put load on a gateway and measure throughput, latency, time to first token, and goodput.

    A run for each budget and each load, one after the other, bounded in time and count.

    example: fsr load scene.png --clients 1,4,16 --budget 16,144 --max-tokens 32 --ignore-eos --bound 2

    example: fsr load *.png --rate 5,10,20 --seconds 60 --json load.json --plot load.png
    """
    try:
        loads = _loads(clients, rate)
        _writable({"--json": json_file, "--markdown": markdown_file, "--plot": plot_file})
        pictures = [read_picture(path) for path in images]
        base = {"method": method, "max_tokens": max_tokens, "ignore_eos": ignore_eos}
        bounds: dict[str, Any] = {"seconds": seconds, "requests": requests, "warmup": warmup, "bound": bound}
        bounds |= {"timeout": timeout, "seed": seed}
        plans = [
            (name, label, Plan(pictures, question, options=tuple((base | {"budget": value}).items()), **size, **bounds))
            for name, value in ((part.strip(), parse_budget(part.strip())) for part in budget.split(","))
            for label, size in loads
        ]
        rows = asyncio.run(_run(connection, plans))
        shown = table = markdown(rows, bound)
        if markdown_file:
            markdown_file.write_text(table)
        if json_file:
            settings = base | bounds | {"question": question, "images": [str(path) for path in images]}
            measured = as_json(rows, settings)
            if json_file == _STANDARD_OUTPUT:
                shown = measured
            else:
                json_file.write_text(measured)
        if plot_file:
            plot(rows, plot_file, bound)
    except (ClientError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    print(shown)  # last, so that a reader who leaves early (`| head`) costs no file
    if not any(row.summary.requests_per_second > 0 for row in rows):
        fail(f"no request was answered: {rows[-1].summary.errors or 'raise --seconds or lower --warmup'}")


def _writable(files: dict[str, Path | None]) -> None:
    """Before the load, not after it: raises InvalidRequestError for a file that could not be written."""
    for option, path in files.items():
        if option == "--json" and path == _STANDARD_OUTPUT:
            continue
        if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise InvalidRequestError(f"{option}: cannot write {path}; give a file in a folder that is there")
        if path is not None and option == "--plot":
            check_plot(path)


def _loads(clients: str, rate: str) -> list[tuple[str, dict[str, Any]]]:
    """A label and the plan's size for each load. Raises InvalidRequestError."""
    if bool(clients) == bool(rate):
        raise InvalidRequestError("--clients or --rate: give one of the two, such as --clients 1,4,16")
    option, text = ("clients", clients) if clients else ("rate", rate)
    try:
        values = [int(part) if clients else float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequestError(f"--{option}: {text!r} is no list of numbers; write 1,4,16") from error
    return [(f"{value:g}" if clients else f"{value:g}/s", {option: value}) for value in values]


async def _run(connection: Connection, plans: list[tuple[str, str, Plan]]) -> list[Row]:
    rows = []
    columns = (TextColumn("{task.description}: {task.completed:.0f} requests"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        async with connection.open_async() as client:
            await client.models()  # raises where nobody answers, before any load
            for budget, label, plan in plans:
                name = f"budget {budget}, load {label}"
                task = progress.add_task(name, total=plan.requests)
                told = partial(_advance, progress, task)
                rows.append(Row(budget, label, summarise(await drive(client, plan, told), plan)))
                progress.remove_task(task)
    return rows


def _advance(progress: Progress, task: TaskID, outcome: Outcome) -> None:
    progress.advance(task)
