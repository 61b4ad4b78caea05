"""Python, the installed packages, and torch's devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from fsr.cli.doctor.finding import Finding, finding
from fsr.common.process.environment import python_problem

__all__ = ["devices", "packages", "python"]

_PACKAGE = "fsr-gateway"
# What each service needs most.
_NEEDED = {"ray": "encoder", "torch": "decoder", "transformers": "decoder", "uvicorn": "gateway", "grpcio": "service"}
_EXTRAS = ("core", "service", "gateway", "encoder")  # vllm has an environment of its own
_TORCH_SECONDS = 120.0
# In a process of its own: the command must not load torch, and a broken build may end its process.
_ASK_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
free = [torch.cuda.mem_get_info(i)[0] for i in range(len(names))]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "names": names, "free": free}))
"""


def python() -> Finding:
    return finding("Python", f"{sys.version.split()[0]}, {sys.executable}", python_problem())


def packages() -> Iterator[Finding]:
    """One for each of the packages that the services stand on."""
    ranges = _ranges()
    for name, extra in _NEEDED.items():
        install = f"pip install '{_PACKAGE}[all]'"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("error", name, f"is missing, so the {extra} cannot run; {install}")
            continue
        allowed = ranges.get(name)
        fits = allowed is None or allowed.contains(found, prereleases=True)
        yield finding(name, found, None if fits else f"{found} is not {allowed}, which is needed; {install}")


def _ranges() -> dict[str, Any]:
    """The versions that our own package asks for."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # a client alone
        return {}
    found = [Requirement(text) for text in requires(_PACKAGE) or []]
    needed = [one for one in found if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in _EXTRAS)]
    return {one.name: one.specifier for one in needed if one.specifier}


def devices(device: str) -> Finding:
    """Whether torch has the device that the models are to run on."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TORCH_SECONDS
        )
        torch = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Finding(
            "error", "devices", f"torch does not load within {_TORCH_SECONDS:g} s; look for a busy disk or GPU"
        )
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return Finding("error", "devices", f"torch does not load ({last}); install it again, in a fresh environment")
    gpus = ", ".join(
        f"{name} ({free / 2**30:.0f} GiB free)" for name, free in zip(torch["names"], torch["free"], strict=True)
    )
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "no CUDA"
    error = warning = None
    number = int(device.partition(":")[2] or 0) if device.startswith("cuda") else -1
    if number >= len(torch["names"]):
        cause = "no driver or no GPU is found: check nvidia-smi" if torch["cuda"] else "install a build with CUDA"
        error = f"--device {device} cannot be used: torch {torch['version']} has {build}, {gpus or 'no GPU'}; {cause}"
    elif number < 0 and os.path.exists("/dev/nvidia0") and not gpus:
        warning = f"this machine has a GPU, and torch {torch['version']} ({build}) does not use it"
        warning += "; install a build with CUDA, or go on with the CPU"
    elif number < 0 and gpus:
        warning = f"the models run on the CPU, beside {gpus}; use --device cuda"
    return finding("devices", f"torch with {build}; {gpus or 'CPU'}", error, warning)
