"""The machine that a benchmark runs on, and whether it is quiet. It is imported, not run."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

__all__ = ["QUIET", "busy_share", "code_version", "machine"]

QUIET = 0.1  # a machine whose cores are busy for a larger share of the time before a run is not quiet
_PACKAGES = ("fsr-gateway", "torch", "transformers", "ray", "grpcio", "numpy", "pillow")
_ROOT = Path(__file__).parents[1]


def machine(code: str) -> dict[str, Any]:
    """Cores, memory and versions, and how busy the machine is now."""
    return {
        "code": code,
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "load_average": [round(one, 2) for one in psutil.getloadavg()],
        "busy": busy_share(3.0),
    }


def busy_share(seconds: float) -> float:
    """The share of all cores' time, in the next `seconds`, that anything is busy."""
    return round(psutil.cpu_percent(seconds) / 100, 3)


def code_version() -> str:
    """The commit, and a digest of what differs from it; `unknown` outside of a repository."""
    try:
        commit = _git("rev-parse", "--short", "HEAD").decode().strip()
        changes = _git("diff", "HEAD", "--", "fsr_core", "services", "protos", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (f" changed {hashlib.sha256(changes).hexdigest()[:8]}" if changes else "")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, check=True).stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
