"""Tools of `fsr_core` that commands run: drawing needs Pillow, which the client alone does not install."""

from __future__ import annotations

import subprocess
import sys

from services.client.terminal import fail

__all__ = ["run_core"]


def run_core(command: list[str], given: str | None = None) -> str:
    """What the tool prints; ends the command where it fails."""
    done = subprocess.run([sys.executable, "-m", *command], input=given, text=True, capture_output=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: ")
        if "No module named" in reason:
            reason += "; install the drawing parts: pip install 'fsr-gateway[core]'"
        fail(reason)
    return done.stdout
