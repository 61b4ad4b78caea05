"""Writes `constraints.txt`: the version of every package that the images of gateway, encoder and decoder install.

python deploy/docker/pin.py            # the registry's newest versions within the ranges of pyproject.toml

Run it with the oldest Python that pyproject.toml allows: these versions then also install on the images' newer Python.
By default pip finds torch with its CUDA libraries, and their versions are pinned too. A CPU build of torch, which needs
no CUDA libraries, still meets the constraints.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGET = HERE / "constraints.txt"
_OURS = "fsr-gateway"


def resolve() -> list[dict[str, Any]]:
    """What pip would install, as pip's own report has it. Nothing is installed."""
    requirement = f"{HERE.parents[1]}[gateway,encoder,decoder,otel]"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run([*command, requirement], stdout=subprocess.PIPE, check=True).stdout
    return list(json.loads(report)["install"])


def text(installs: list[dict[str, Any]]) -> str:
    """The file's text. Versions have no local label such as `+cpu`, so that a constraint admits every build."""
    packages = [install["metadata"] for install in installs]
    versions = {re.sub("[-_.]+", "-", p["name"]).lower(): p["version"].partition("+")[0] for p in packages}
    pins = [f"{name}=={version}" for name, version in sorted(versions.items()) if name != _OURS]
    return "\n".join(["# Written by deploy/docker/pin.py (make constraints).", *pins, ""])


if __name__ == "__main__":
    TARGET.write_text(text(resolve()))
