"""Whether an environment has what the services need; nothing is imported, which would take seconds."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fsr.cli.terminal import fail

__all__ = ["check_installed", "decoder_python"]

_VLLM_ENVIRONMENT = Path(".venv-vllm/bin/python")  # where `make test-vllm` builds one
# One module of each extra that `fsr up` needs.
_NEEDED = ("ray", "torch", "transformers", "uvicorn", "grpc_health", "structlog")


def check_installed() -> None:
    """Ends the command if the services are not installed: the SDK and this command alone are a smaller package."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        fail(f"{missing[0]} is missing; install what the services need: pip install 'fsr-gateway[all]'")


def decoder_python(engine: str, named: Path | None) -> str:
    """The Python that runs the decoders. Ends the command if its environment lacks what the decoders need."""
    if named is None and engine == "transformers":
        return sys.executable
    for python in [named] if named else [Path(sys.executable), _VLLM_ENVIRONMENT.absolute()]:
        if _has(python, ["fsr.decoder", *(["vllm"] if engine == "vllm" else [])]):
            return str(python)
    if named:
        extra = "vllm" if engine == "vllm" else "decoder"
        fail(f"--decoder-python: {named} is no Python with fsr-gateway[{extra}]; install it there, or name another")
    fail("--engine: vllm is not installed here; install fsr-gateway[vllm] in its own environment: --decoder-python")


def _has(python: Path, modules: list[str]) -> bool:
    find = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    try:
        return subprocess.run([python, "-c", find, *modules], capture_output=True).returncode == 0
    except OSError:
        return False
