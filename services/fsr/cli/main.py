"""The `fsr` command: puts its subcommands together."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from fsr.cli.ask import ask
from fsr.cli.calibrate.command import calibrate
from fsr.cli.demo import demo
from fsr.cli.doctor.command import doctor
from fsr.cli.evaluate import PASS_THROUGH, evaluate
from fsr.cli.explain import explain
from fsr.cli.keys import keys
from fsr.cli.load import load
from fsr.cli.models import models
from fsr.cli.plan.command import plan
from fsr.cli.scene import scene
from fsr.cli.terminal import Commands
from fsr.cli.up import up
from fsr.common.process.hidden_arguments import hide

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ask about pictures and videos from a tenth of their visual tokens.\n\n"
    "example: fsr up\n\n"
    "in another terminal: fsr scene -o scene.png && fsr ask scene.png 'What colour is the star?' --budget 16",
)
for command in (up, doctor, scene, demo, ask, models, explain, load, calibrate, plan, keys):
    app.command()(command)
app.command(context_settings=PASS_THROUGH)(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fsr {version('fsr-gateway')}")
        raise typer.Exit


@app.callback(help=app.info.help)
def _options(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and exit")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point."""
    hide({"--api-key": "FSR_API_KEY", "--api-keys": "FSR_GATEWAY_API_KEYS"})
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # names and answers may have what the terminal's encoding lacks
    try:
        try:
            app(prog_name="fsr")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the rest of the output fails again
        sys.exit("error: the disk that is written to is full; free some space, or write elsewhere")


if __name__ == "__main__":
    main()
