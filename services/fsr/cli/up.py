"""`fsr up`"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fsr.cli.local_stack import StartFailed, running
from fsr.cli.options import GatewayPort
from fsr.cli.terminal import fail

__all__ = ["up"]


def up(
    model: Annotated[str, typer.Option(help="fsr-tiny, a checkpoint folder, or a hub id")] = "fsr-tiny",
    decoders: Annotated[int, typer.Option(min=1, max=8, help="number of decoder replicas")] = 1,
    clip: Annotated[
        str | None, typer.Option(help="CLIP or SigLIP checkpoint that scores relevance, or none to go without")
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch device of all weights; default cpu")] = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, typer.Option(help="dtype of all weights; default fp32")
    ] = None,
    port: GatewayPort = 20050,
    http_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of the gateway's HTTP interface; default: --port plus 2")
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="what generates the answers; see docs/decoders.md")
    ] = "transformers",
    decoder_python: Annotated[
        Path | None,
        typer.Option(
            help="Python that runs the decoders; default with vllm: this one if it has vllm, else .venv-vllm/bin/python"
        ),
    ] = None,
    engine_options: Annotated[
        str | None, typer.Option(metavar="JSON", help="more arguments for vllm; see docs/decoders.md")
    ] = None,
    family_options: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="the encoder's options for the model family; see docs/models.md"),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="folder for the services' logs; default: a new temporary folder")
    ] = None,
    start_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="longest wait until all services are ready; default: no limit while they run"),
    ] = None,
    stop_seconds: Annotated[
        float, typer.Option(min=0, help="time that services have to stop before they are killed")
    ] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object of addresses when ready")] = False,
) -> None:
    """Start encoder, decoders and gateway on this machine; Ctrl-C stops them all.

    example: fsr up --decoders 2

    example: fsr up --model /models/llava-1.5-7b-hf --clip openai/clip-vit-large-patch14-336 --device cuda --dtype bf16

    example: fsr up --engine vllm --decoder-python /envs/vllm/bin/python --engine-options '{"enforce_eager": true}'

    example: fsr up --model /models/llava-video-7b --family-options '{"video_newlines": "row"}'
    """
    model_flags = [*(["--device", device] if device else []), *(["--dtype", dtype] if dtype else [])]
    encoder_flags = ["--clip", clip] if clip else []
    if family_options is not None:
        _check_family_options(family_options)
        encoder_flags += ["--family-options", family_options]
    if device and device.startswith("cuda"):
        encoder_flags += ["--num-gpus", "1"]  # else Ray hides the GPU from the replica
    decoder_flags = ["--engine", engine, *(["--engine-options", engine_options] if engine_options else [])]
    folder = logs or Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    console, starting = Console(stderr=as_json), f"starting {model} (logs in {folder})"
    if not console.is_terminal:
        console.print(starting, highlight=False, soft_wrap=True)  # a terminal shows it with a clock instead
    # A first start may download for minutes.
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task(starting, total=None)
    stack = running(
        model,
        decoders,
        port,
        folder,
        http_port=http_port,
        model_flags=model_flags,
        encoder_flags=encoder_flags,
        decoder_flags=decoder_flags,
        decoder_python=_decoder_python(engine, decoder_python),
        start_seconds=start_seconds,
        stop_seconds=stop_seconds,
    )
    try:
        with progress, stack as addresses:
            progress.stop()
            if as_json:
                print(json.dumps(addresses), flush=True)
            else:
                for name, address in addresses.items():
                    console.print(f"{name:17} {address}", highlight=False)
            console.print(f"try it on http://{addresses['http']}", highlight=False)
            console.print("encoder and Ray listen on every interface: docs/deploy.md")
            console.print("ready; Ctrl-C stops everything", highlight=False)
            with suppress(KeyboardInterrupt):
                signal.pause()
            console.print(f"stopping, which takes up to {stop_seconds:g} s", highlight=False)
    except StartFailed as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _decoder_python(engine: str, named: Path | None) -> str:
    """The Python that runs the decoders. Ends the command if its environment lacks what the decoders need."""
    if named is None and engine == "transformers":
        return sys.executable
    for python in [named] if named else [Path(sys.executable), Path(".venv-vllm/bin/python").absolute()]:
        if _has(python, ["fsr.decoder", *(["vllm"] if engine == "vllm" else [])]):
            return str(python)
    if named:
        extra = "vllm" if engine == "vllm" else "decoder"
        fail(f"--decoder-python: {named} is no Python with fsr-gateway[{extra}]; install it there, or name another")
    fail("--engine: vllm is not installed here; install fsr-gateway[vllm] in its own environment: --decoder-python")


def _has(python: Path, modules: list[str]) -> bool:
    """Whether a Python finds these modules. It does not import them, which would take seconds."""
    find = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    try:
        return subprocess.run([python, "-c", find, *modules], capture_output=True).returncode == 0
    except OSError:
        return False


def _check_family_options(text: str) -> None:
    """Ends the command, before anything starts, unless the text is a JSON object of texts."""
    try:
        options = json.loads(text)
    except ValueError as error:
        fail(f"""--family-options: {text!r} is no JSON ({error}); write '{{"video_newlines": "row"}}'""")
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        fail(f"""--family-options: {text!r} is no object of texts; write '{{"video_newlines": "row"}}'""")
