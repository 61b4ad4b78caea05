"""Reads the Dockerfiles and runs their commands without a Docker engine."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def instructions(image):
    """(keyword, arguments) of each instruction of a Dockerfile, with continuation lines joined."""
    text = (ROOT / f"deploy/docker/{image}.Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def stages(image):
    """The instructions of each stage of a build."""
    parts = []
    for word, rest in instructions(image):
        if word == "FROM":
            parts.append([])
        if parts:
            parts[-1].append((word, rest))
    return parts


def one(service, keyword):
    """Arguments of the last instruction with this keyword."""
    return [rest for word, rest in instructions(service) if word == keyword][-1]


def pinned(*files):
    """(name, version) of each package in files of deploy/docker/requirements."""
    text = "".join((ROOT / f"deploy/docker/requirements/{name}.txt").read_text() for name in files)
    return re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE)


def unpinned(site, *files):
    """(name, version) of each package in the folder `site` that none of these files of requirements names.

    This project itself and the packages of every venv do not count, nor does the local label of a build, such as +cpu.
    """
    distributions = importlib.metadata.distributions(path=[str(site)])
    installed = {(canonicalize_name(one.name), one.version.partition("+")[0]) for one in distributions}
    return {pin for pin in installed - set(pinned(*files)) if pin[0] not in ("fsr-gateway", "pip", "setuptools")}


def environment(service):
    """The variables that the image sets."""
    return dict(pair.split("=", 1) for pair in shlex.split(one(service, "ENV")))


def install(image, folder):
    """Runs the first stage of the image's build in `folder`, on the files that the image copies.

    Returns the variables of the image's commands, and the folder with the installed packages.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FSR_", "VIRTUAL_ENV"))}
    if "+" in importlib.metadata.version("torch"):  # as here: the build for CPUs, from where pip finds it
        clean.setdefault("TORCH_INDEX", folder.as_uri())
    source = folder / "src"
    for word, rest in stages(image)[0]:
        if word == "COPY":
            *sources, target = rest.split()
            for name in sources:
                copy = source / (Path(name).name if target == "./" else target)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
                else:
                    shutil.copy(ROOT / name, copy)
        if word == "RUN":
            # An image has no use for pip's cache; here the cache makes the install faster.
            line = rest.replace("/opt/", f"{folder}/").replace("--no-cache-dir", "--quiet")
            line = line.replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(["bash", "-ec", line], cwd=source, env=clean, check=True)
    venv = folder / "fsr"
    site = next(venv.glob("lib/python*/site-packages"))
    return clean | environment(image) | {"PATH": f"{venv}/bin:{clean['PATH']}"}, site


@contextmanager
def started(image, env, port, folder):
    """Runs the image's entry point on `port` and the two ports after it, and waits for its health check.

    On leaving, SIGTERM ends the process; its exit code must be 0.
    """
    kind = image.partition("-")[0].upper()
    env = env | {f"FSR_{kind}_PORT": str(port)}
    if f"FSR_{kind}_HOST" in env:  # the encoder's image sets none
        env |= {f"FSR_{kind}_HOST": "127.0.0.1"}
    env |= {f"FSR_{kind}_METRICS_PORT": str(port + 1)}
    probe = json.loads(one(image, "HEALTHCHECK").split("CMD ", 1)[1])
    probe[-1] = f"127.0.0.1:{port}"
    if f"FSR_{kind}_HEALTH_PORT" in env:
        env |= {f"FSR_{kind}_HEALTH_PORT": str(port + 2)}
        probe[-1] = f"127.0.0.1:{port + 2}"
    process = subprocess.Popen(json.loads(one(image, "ENTRYPOINT")), env=env, cwd=folder)
    try:
        end = time.monotonic() + 120
        while (check := subprocess.run(probe, env=env, cwd=folder, capture_output=True, text=True)).returncode:
            assert check.returncode == 1 and check.stderr.startswith("error: ")
            assert process.poll() is None and time.monotonic() < end, check.stderr
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0
