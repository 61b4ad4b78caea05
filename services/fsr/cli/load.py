"""`fsr load`"""

from __future__ import annotations

import asyncio
import os
import secrets
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from fsr.cli.connection import Connection, connects
from fsr.cli.fresh import Fresh
from fsr.cli.load_generator import Outcome, Plan, drive
from fsr.cli.load_report import Row, as_json, check_plot, markdown, plot
from fsr.cli.load_summary import summarise
from fsr.cli.options import DEFAULT_BUDGET, MethodName, MethodOption, ModelName, compression_choice, parse_budget
from fsr.cli.terminal import fail
from fsr.client.errors import ClientError, InvalidRequestError
from fsr.client.media import read_picture
from fsr.client.requests import GenerateOptions

__all__ = ["load"]

_STANDARD_OUTPUT = Path("-")


@connects
def load(
    connection: Connection,
    images: Annotated[list[Path], typer.Argument(help="pictures; the requests take them in turn")],
    question: Annotated[str, typer.Option(help="what to ask")] = "What is in the picture?",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="a new picture and question for each request, made from those given; repeated ones measure caches",
        ),
    ] = False,
    clients: Annotated[str, typer.Option(help="closed loop: number of clients of each run, as 1,4,16")] = "",
    rate: Annotated[str, typer.Option(help="open loop: requests a second of each run, as 2,8")] = "",
    budget: Annotated[str, typer.Option(help="budgets to compare, as 16,0.5,auto,default")] = DEFAULT_BUDGET,
    model: ModelName = "",
    method: MethodName = "",
    option: MethodOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 64,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="answers of exactly --max-tokens")] = False,
    seconds: Annotated[float, typer.Option(help="longest time of a run")] = 30.0,
    requests: Annotated[int, typer.Option(min=1, help="most requests of a run")] = 100_000,
    warmup: Annotated[int, typer.Option(min=0, help="first answers of a run, which are not counted")] = 5,
    bound: Annotated[float, typer.Option(help="seconds up to which an answer counts for goodput")] = 1.0,
    timeout: Annotated[float, typer.Option(help="longest wait for an answer, in seconds")] = 60.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="seed of the arrival times of an open loop, and of what is new with --fresh; default: 0, with --fresh "
            "another one each time, which the JSON names"
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="file for all figures as JSON; - prints them instead of the table"),
    ] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="file for the table")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="PNG for throughput, goodput, TTFT and latency")
    ] = None,
) -> None:
    """Put load on a gateway and measure throughput, latency, time to first token, and goodput.

    Each budget and each load is one run; runs follow each other and are bounded in time and number of requests.

    example: fsr load scene.png --clients 1,4,16 --budget 16,144 --max-tokens 32 --ignore-eos --bound 2

    example: fsr load *.png --fresh --rate 5,10,20 --seconds 60 --json load.json --plot load.png
    """
    try:
        loads = _loads(clients, rate)
        _check_files({"--json": json_file, "--markdown": markdown_file, "--plot": plot_file})
        pictures = [read_picture(path) for path in images]
        answers: GenerateOptions = {"max_tokens": max_tokens, "ignore_eos": ignore_eos}
        limits: dict[str, Any] = {"seconds": seconds, "requests": requests, "warmup": warmup, "bound": bound}
        if seed is None:  # with the seed of an earlier load, the pictures would be in the caches
            seed = secrets.randbelow(2**32) if fresh else 0
        limits |= {"timeout": timeout, "seed": seed}
        if fresh:
            for picture in pictures:
                Fresh("").picture(picture, 0)  # raises before the load, not during it
        plans, choice = [], compression_choice(DEFAULT_BUDGET, "even", model, method, option)
        for name in (part.strip() for part in budget.split(",")):
            options: GenerateOptions = {**answers, **choice, "budget": parse_budget(name)}
            for label, size in loads:
                plan = Plan(
                    images=pictures,
                    question=question,
                    # No run finds the pictures of another one in the caches.
                    fresh=Fresh(f"{seed} {name} {label}") if fresh else None,
                    options=options,
                    **size,
                    **limits,
                )
                plans.append((name, label, plan))
        rows = asyncio.run(_run(connection, plans))
        printed = table = markdown(rows, bound)
        if markdown_file:
            markdown_file.write_text(table)
        if json_file:
            settings: dict[str, Any] = {
                "model": model,
                "method": method,
                "options": choice["options"],
                **answers,
                **limits,
            }
            settings |= {"question": question, "images": [str(path) for path in images], "fresh": fresh}
            figures = as_json(rows, settings)
            if json_file == _STANDARD_OUTPUT:
                printed = figures
            else:
                json_file.write_text(figures)
        if plot_file:
            plot(rows, plot_file, bound)
    except (ClientError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not fresh and sum(row.summary.requests + warmup for row in rows) > len(pictures):
        note = "warning: pictures were sent more than once, so caches did a part of the work; --fresh sends new ones"
        Console(stderr=True).print(note, soft_wrap=True, highlight=False)
    print(printed)  # last: a reader that stops early (`| head`) must not cost a file
    if not any(row.summary.requests_per_second > 0 for row in rows):
        why = next(iter(rows[-1].summary.reasons), "raise --seconds or lower --warmup")
        fail(f"no request was answered: {why}")


def _check_files(files: dict[str, Path | None]) -> None:
    """Before the load, not after it. Raises InvalidRequestError for a file that cannot be written."""
    for option, path in files.items():
        if path is None or (option == "--json" and path == _STANDARD_OUTPUT):
            continue
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InvalidRequestError(f"{option}: cannot write {path}; name a file in a folder that exists")
        if option == "--plot":
            check_plot(path)


def _loads(clients: str, rate: str) -> list[tuple[str, dict[str, Any]]]:
    """For each load a label, and the plan's size. Raises InvalidRequestError."""
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
            await client.models()  # raises if the gateway cannot be reached, before any load
            for budget, label, plan in plans:
                task = progress.add_task(f"budget {budget}, load {label}", total=plan.requests)
                outcomes = await drive(client, plan, partial(_advance, progress, task))
                rows.append(Row(budget, label, summarise(outcomes, plan)))
                progress.remove_task(task)
    return rows


def _advance(progress: Progress, task: TaskID, outcome: Outcome) -> None:
    progress.advance(task)
