"""Writes `constraints.txt`, the version of everything that the images of gateway, encoder and decoder install.

python deploy/docker/pin.py            # what the registry has now, within the ranges of pyproject.toml

Run it with the oldest Python that pyproject.toml allows: what is chosen then installs in the images' newer one too.
Where pip finds torch with its CUDA libraries, as it does by default, their versions are pinned as well; a torch without
them passes.
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


def chosen() -> list[dict[str, Any]]:
    """What pip would install, and where from; nothing is installed."""
    wanted = f"{HERE.parents[1]}[gateway,encoder,decoder]"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    return list(json.loads(subprocess.run([*command, wanted], stdout=subprocess.PIPE, check=True).stdout)["install"])


def text(installs: list[dict[str, Any]]) -> str:
    """The file's text. The local label of a version is left out: a constraint without one admits every build."""
    told = [one["metadata"] for one in installs]
    pinned = {re.sub("[-_.]+", "-", one["name"]).lower(): one["version"].partition("+")[0] for one in told}
    pins = [f"{name}=={version}" for name, version in sorted(pinned.items()) if name != _OURS]
    return "\n".join(["# Written by deploy/docker/pin.py (make constraints).", *pins, ""])


if __name__ == "__main__":
    TARGET.write_text(text(chosen()))
