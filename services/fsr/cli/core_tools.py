"""Runs drawing tools of `fsr_core` as processes: they need Pillow, which the client alone does not install."""

from __future__ import annotations

import subprocess
import sys

from fsr.cli.terminal import fail

__all__ = ["run_core"]


def run_core(command: list[str], standard_input: str | None = None) -> str:
    """Returns what the tool prints. If it fails, ends the command with the last line of its errors."""
    done = subprocess.run([sys.executable, "-m", *command], input=standard_input, text=True, capture_output=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        # argparse puts the name of the tool first, but the user has typed another command.
        reason = last.removeprefix(f"python -m {command[0]}: ").removeprefix("error: ")
        if "No module named" in reason:
            reason += "; install the drawing parts: pip install 'fsr-gateway[core]'"
        fail(reason)
    return done.stdout
