"""The encoder's and decoder's install lines in clean environments: minutes, and gigabytes of torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("service", ["decoder", "encoder"])
def test_install_line_brings_a_service_that_starts(service, tmp_path):
    text = (ROOT / f"deploy/docker/{service}.Dockerfile").read_text()
    line = next(line for line in text.splitlines() if "pip install" in line).removeprefix("RUN ")
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "protos", "fsr_core", "services"):
        (source / name).symlink_to(ROOT / name)
    line = line.replace("/opt/fsr", str(tmp_path / "fsr")).replace("python -m venv", f"{sys.executable} -m venv")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FSR_", "VIRTUAL_ENV"))}
    subprocess.run(["bash", "-ec", line], cwd=source, env=clean, check=True)
    # Loads all that a start loads, without starting: the model of the image, and the server's modules.
    code = f"import services.{service}.__main__, services.health; from fsr_core.backbones import load_{service} as load"
    code += "; import services.encoder.app" if service == "encoder" else ""
    code += f"; print(load('fsr-tiny', {'clip=None, ' if service == 'encoder' else ''}device='cpu').fingerprint)"
    python = tmp_path / "fsr/bin/python"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()[-1]) >= 12
