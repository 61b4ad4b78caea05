"""`fsr scene`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsr.cli.core_tools import run_core
from fsr.cli.options import SCENE, AsJson, SceneSeed

__all__ = ["scene"]


def scene(
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write")],
    seed: SceneSeed = SCENE,
    as_json: AsJson = False,
) -> None:
    """Draw a test scene to ask about, and print questions with their answers. Without a seed it has a red star.

    example: fsr scene -o scene.png --seed 1100007
    """
    command = ["fsr_core.tiny", "-o", str(output), "--seed", str(seed)]
    print(run_core([*command, "--json"] if as_json else command), end="")
