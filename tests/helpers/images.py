"""What the Dockerfiles say, and their commands run without a Docker engine."""

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
    """(keyword, arguments) of each instruction of a Dockerfile, continuation lines joined."""
    text = (ROOT / f"deploy/docker/{image}.Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


def one(service, keyword):
    return [rest for word, rest in instructions(service) if word == keyword][-1]


def constraints():
    """The one version that each package may have."""
    lines = (ROOT / "deploy/docker/constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def unpinned(site):
    """What is installed there in a version that no constraint names; what is ours, or comes with a venv, aside.

    The local label of a build, such as +cpu, is no part of its version.
    """
    found = importlib.metadata.distributions(path=[str(site)])
    told = {(canonicalize_name(one.name), one.version.partition("+")[0]) for one in found}
    return {one for one in told - constraints().items() if one[0] not in ("fsr-gateway", "pip", "setuptools")}


def install_line(service):
    return next(rest for word, rest in instructions(service) if word == "RUN" and "pip install" in rest)


def environment(service):
    return dict(pair.split("=", 1) for pair in shlex.split(one(service, "ENV")))


def install(image, folder):
    """Runs the image's install line on what it copies, in a clean environment in `folder`.

    Returns the variables that its commands then run with, and the folder of what is installed.
    """
    source, venv = folder / "src", folder / "fsr"
    for word, rest in instructions(image):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for name in sources:
                place = source / (Path(name).name if target == "./" else target)
                place.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
                else:
                    shutil.copy(ROOT / name, place)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FSR_", "VIRTUAL_ENV"))}
    # The image's cache would be thrown away; this machine's is welcome.
    line = install_line(image).replace("/opt/fsr", str(venv)).replace("--no-cache-dir", "--quiet")
    assert str(venv) in line
    line = line.replace("python -m venv", f"{sys.executable} -m venv")
    subprocess.run(["bash", "-ec", line], cwd=source, env=clean, check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    return clean | environment(image) | {"PATH": f"{venv}/bin:{clean['PATH']}"}, site


@contextmanager
def started(image, env, port, folder):
    """The image's entry point on `port` and the two after it, until its health check passes; ended by SIGTERM."""
    kind = image.partition("-")[0].upper()
    env = env | {f"FSR_{kind}_PORT": str(port)}
    if f"FSR_{kind}_HOST" in env:  # the encoder takes none
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
        while (told := subprocess.run(probe, env=env, cwd=folder, capture_output=True, text=True)).returncode:
            assert told.returncode == 1 and told.stderr.startswith("error: ")
            assert process.poll() is None and time.monotonic() < end, told.stderr
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0
