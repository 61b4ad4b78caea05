"""The `fsr` command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from services.client import evaluate_cli, load_cli
from services.client.build import parse_budget
from services.client.connection import Connection, connects
from services.client.errors import ClientError
from services.client.sync import Client
from services.client.terminal import fail
from services.client.types import Usage
from services.client.up import StartFailed, running

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Ask about pictures from a tenth of their visual tokens.\n\n"
    "example: fsr up & fsr scene -o scene.png && fsr ask scene.png 'What colour is the star?' --budget 16",
)
BudgetText = Annotated[str, typer.Option(help="tokens (16), a share (0.11) or auto")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
MethodName = Annotated[str, typer.Option(help="compression method")]


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


@app.command()
def up(
    model: Annotated[str, typer.Option(help="fsr-tiny, a checkpoint folder, or a hub id")] = "fsr-tiny",
    decoders: Annotated[int, typer.Option(min=1, max=8, help="decoder replicas")] = 1,
    port: Annotated[int, typer.Option(min=1024, max=65000, help="gateway port; the others follow it")] = 50050,
    logs: Annotated[Path | None, typer.Option(help="folder for the services' logs")] = None,
) -> None:
    """Start encoder, decoders and gateway on this machine; Ctrl-C stops them all.

    example: fsr up --decoders 2
    """
    folder = logs or Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    console = Console()
    try:
        with console.status(f"starting {model} (logs in {folder})"):
            context = running(model, decoders, port, folder)
            addresses = context.__enter__()
    except StartFailed as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    try:
        for name, address in addresses.items():
            console.print(f"{name:12} {address}", highlight=False)
        console.print("ready; Ctrl-C stops everything", highlight=False)
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping")
    finally:
        context.__exit__(None, None, None)


@app.command()
@connects
def ask(
    connection: Connection,
    image: Path,
    question: str,
    budget: BudgetText = "auto",
    method: MethodName = "fsr",
    max_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    timeout: Annotated[float, typer.Option(help="seconds")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Ask a question about a picture; the answer streams, then what was saved.

    example: fsr ask scene.png "What colour is the star?" --budget 16
    """
    text, usage = [], None
    try:
        wanted: dict[str, Any] = {"budget": parse_budget(budget), "method": method, "max_tokens": max_tokens}
        wanted["temperature"] = temperature
        with connection.open() as client:
            for chunk in client.stream(image, question, timeout=timeout, **wanted):
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


@app.command()
@connects
def explain(
    connection: Connection,
    image: Path,
    question: str,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write")],
    budget: BudgetText = "auto",
    method: MethodName = "fsr",
    timeout: Annotated[float, typer.Option(help="seconds")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Draw which patches were kept, merged and dropped for a question.

    example: fsr explain scene.png "What colour is the star?" --budget 16 -o why.png
    """
    try:
        with connection.open() as client:
            told = client.compress(
                image, question, budget=parse_budget(budget), method=method, explain=True, timeout=timeout
            ).images[0]
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
    _run_core(["fsr_core.overlay", str(image), "--plan", "-", "-o", str(output)], json.dumps(plan))
    summary = {"output": str(output), "tokens": told.source_tokens, "kept": len(told.index), "focus": told.focus_count}
    summary |= {"scan": len(told.index) - told.focus_count, "merged": told.merged_count}
    print(json.dumps(summary) if as_json else f"{output}: kept {len(told.index)} of {told.source_tokens} tokens")


@app.command()
def scene(
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write")],
    seed: Annotated[int, typer.Option(min=0, help="which scene")] = 1_100_000,
    as_json: AsJson = False,
) -> None:
    """Draw a test scene to ask about, and print questions with their answers.

    example: fsr scene -o scene.png --seed 1100007
    """
    command = ["fsr_core.tiny.scenes", "-o", str(output), "--seed", str(seed)]
    print(_run_core([*command, "--json"] if as_json else command), end="")


@app.command()
def demo(
    budget: BudgetText = "16",
    seed: Annotated[int, typer.Option(min=0, help="which scene")] = 1_100_003,
    port: Annotated[int, typer.Option(min=1024, max=65000, help="gateway port; the others follow it")] = 50050,
) -> None:
    """Start everything, ask about a drawn scene with all tokens and with a few, and show what was saved.

    example: fsr demo --budget 16
    """
    console, folder = Console(), Path(tempfile.mkdtemp(prefix="fsr-demo-"))
    picture = folder / "scene.png"
    drawn = json.loads(_run_core(["fsr_core.tiny.scenes", "-o", str(picture), "--seed", str(seed), "--json"]))
    console.print(f"scene drawn: {picture}", highlight=False)
    table = Table("question", "true answer", "all tokens", f"budget {budget}")
    try:
        with console.status("starting encoder, decoder and gateway"):
            context = running("fsr-tiny", 1, port, folder)
            addresses = context.__enter__()
        try:
            with Client(addresses["gateway"]) as client:
                for row in drawn["questions"]:
                    whole = client.ask(picture, row["question"], budget=1.0)
                    few = client.ask(picture, row["question"], budget=parse_budget(budget))
                    table.add_row(row["question"], row["answer"], whole.text.strip(), few.text.strip())
        finally:
            context.__exit__(None, None, None)
    except (StartFailed, ClientError) as error:
        fail(error)
    console.print(table)
    console.print("saved on the last question:")
    console.print(savings_table(few.usage))


def _run_core(command: list[str], given: str | None = None) -> str:
    """Output of a tool of `fsr_core`: drawing needs Pillow, which the client alone does not install."""
    done = subprocess.run([sys.executable, "-m", *command], input=given, text=True, capture_output=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
        if "No module named" in reason:
            reason += "; install the drawing parts: pip install 'fsr-gateway[core]'"
        fail(reason)
    return done.stdout


load_cli.add_to(app)
evaluate_cli.add_to(app)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
