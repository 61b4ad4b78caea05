"""`fsr doctor`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from fsr.cli.doctor import machine, software
from fsr.cli.doctor.finding import Finding
from fsr.cli.doctor.model import model as check_model
from fsr.cli.options import AsJson, GatewayPort
from fsr.cli.stack.plan import LOOPBACK, Plan

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def doctor(
    model: Annotated[str, typer.Option(help="as of fsr up")] = "fsr-tiny",
    clip: Annotated[str | None, typer.Option(help="as of fsr up")] = None,
    device: Annotated[str, typer.Option(help="as of fsr up")] = "cpu",
    decoders: Annotated[int, typer.Option(min=1, max=8, help="as of fsr up")] = 1,
    host: Annotated[str, typer.Option(help="as of fsr up", envvar="FSR_GATEWAY_HOST")] = LOOPBACK,
    port: GatewayPort = 20050,
    as_json: AsJson = False,
) -> None:
    """Check what `fsr up` needs of this machine, and say what to do. It ends with status 1 if `fsr up` cannot work.

    example: fsr doctor

    example: fsr doctor --model org/name --device cuda
    """
    console, findings = Console(), []
    for finding in _findings(Plan(port=port, host=host, decoders=decoders), model, clip, device):
        findings.append(finding)
        if not as_json:
            colour = _COLOURS[finding.level]
            console.print(f"[{colour}]{finding.level:8}[/] {finding.subject:15} ", end="", highlight=False)
            console.print(finding.text, highlight=False, markup=False, soft_wrap=True)
    errors, warnings = ([one for one in findings if one.level == level] for level in ("error", "warning"))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        print(f"\nerrors: {len(errors)}, warnings: {len(warnings)}" if errors or warnings else "\nfsr up can start")
    raise typer.Exit(1 if errors else 0)


def _findings(plan: Plan, model: str, clip: str | None, device: str) -> Iterator[Finding]:
    yield software.python()
    missing = False
    for finding in software.packages():
        missing |= finding.level == "error"
        yield finding
    if not missing:
        yield software.devices(device)
    yield machine.ports(plan)
    yield machine.cpus()
    yield machine.memory()
    yield machine.shared_memory()
    yield from machine.folders()
    yield machine.proxies()
    yield check_model(model, clip)
