"""Tools of `fsr_core` that commands run: drawing needs Pillow, which the client alone does not install."""

from __future__ import annotations

import subprocess
import sys

from fsr.cli.terminal import fail

__all__ = ["run_core"]


def run_core(command: list[str], given: str | None = None) -> str:
    """What the tool prints; ends the command where it fails, with the last line of what the tool says of it."""
    done = subprocess.run([sys.executable, "-m", *command], input=given, text=True, capture_output=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        # argparse puts the tool's own name before it, which nobody has typed.
        reason = last.removeprefix(f"python -m {command[0]}: ").removeprefix("error: ")
        if "No module named" in reason:
            reason += "; install the drawing parts: pip install 'fsr-gateway[core]'"
        fail(reason)
    return done.stdout
