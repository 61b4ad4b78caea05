"""Writes `requirements/`: the version and the hashes of every package that the images install.

python deploy/docker/pin.py            # the registry's newest versions within the ranges of pyproject.toml

uv resolves them for every Python that pyproject.toml allows. Encoder and decoder share `torch.txt`, which has torch
with its CUDA libraries, so that an image for CPUs can leave it out. The image with vLLM pins its own torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1] / "pyproject.toml"
TARGET = HERE / "requirements"
HEADER = "# Written by deploy/docker/pin.py (make requirements).\n"
_TORCH = re.compile(r"(torch|triton|cuda-[\w-]+|nvidia-[\w-]+)==")


def compile_requirements(source: Path, *options: str) -> list[str]:
    """What `source` needs: one text a package, with its hashes. `source` is pyproject.toml or such a file."""
    oldest = tomllib.loads(PROJECT.read_text())["project"]["requires-python"].removeprefix(">=")
    command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "--universal", f"--python-version={oldest}"]
    # One version of a package for all Pythons, where there is one: it is then the version that the tests ran with.
    command += ["--fork-strategy=fewest", "--generate-hashes", "--only-binary=:all:"]
    command += ["--no-header", "--no-annotate", "--no-config", "--quiet", *options]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return re.findall(r"^\S.*\n(?: .*\n)*", text, re.MULTILINE)


def requirements() -> dict[str, list[str]]:
    """The packages of each file in `requirements/`."""
    services = ("gateway", "encoder", "decoder")
    together = compile_requirements(PROJECT, *(f"--extra={extra}" for extra in (*services, "otel")))
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder, "shared.txt")
        shared.write_text("".join(f"{line.split(' ')[0]}\n" for line in without_repeats(together)))
        options = ("--extra=otel", f"--constraints={shared}")
        files = {name: compile_requirements(PROJECT, f"--extra={name}", *options) for name in services}
        build = Path(folder, "build.in")
        build.write_text("\n".join(tomllib.loads(PROJECT.read_text())["build-system"]["requires"]))
        files["build"] = compile_requirements(build)
    files["decoder-vllm"] = compile_requirements(PROJECT, "--extra=vllm")
    files["torch"] = [line for line in files["decoder"] if _TORCH.match(line)]
    for image in ("encoder", "decoder"):
        files[image] = [line for line in files[image] if not _TORCH.match(line)]
    return files


def without_repeats(lines: Iterable[str]) -> list[str]:
    """The packages that have one version for all Pythons."""
    names = [line.partition("==")[0] for line in lines]
    return [line for line in lines if names.count(line.partition("==")[0]) == 1]


if __name__ == "__main__":
    for name, packages in requirements().items():
        (TARGET / f"{name}.txt").write_text(HEADER + "".join(packages))
