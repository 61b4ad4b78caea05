"""What is wrong around a service is one line, which names the variable or folder and the remedy."""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from fsr.common.process import environment

ROOT = Path(__file__).parents[4]
FILE = "/etc/passwd"  # where no folder can be made


@pytest.fixture
def surroundings(monkeypatch):
    """Sets variables in place of those of the shell."""
    for name in ("RAY_TMPDIR", "TMPDIR", "PROMETHEUS_MULTIPROC_DIR", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def set_(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.mark.parametrize(
    ("check", "variables", "message"),
    [
        ("ray_folder_problem", {"TMPDIR": "/proc/nowhere"}, "TMPDIR: Ray cannot write its folder /proc/nowhere/ray"),
        ("ray_folder_problem", {"TMPDIR": FILE}, "TMPDIR: Ray cannot write"),
        ("ray_folder_problem", {"TMPDIR": "/" + "x" * 60}, "TMPDIR: /x+ is too long .* 61 bytes of at most 4[0-6]"),
        ("ray_folder_problem", {"TMPDIR": "/tmp/ö"}, "TMPDIR: /tmp/ö has characters that are not ASCII"),
        ("ray_folder_problem", {"TMPDIR": "relative"}, "TMPDIR: 'relative' is no absolute path"),
        ("ray_folder_problem", {"TMPDIR": ""}, "TMPDIR: '' is no absolute path"),
        ("ray_folder_problem", {"RAY_TMPDIR": FILE, "TMPDIR": "/tmp"}, "RAY_TMPDIR: Ray cannot write"),
        ("metrics_folder_problem", {"PROMETHEUS_MULTIPROC_DIR": "/no/such"}, "PROMETHEUS_MULTIPROC_DIR: '/no/such'"),
        ("metrics_folder_problem", {"PROMETHEUS_MULTIPROC_DIR": FILE}, "PROMETHEUS_MULTIPROC_DIR: .*no such folder"),
        ("metrics_folder_problem", {"prometheus_multiproc_dir": ""}, "prometheus_multiproc_dir: ''"),
        ("hub_cache_problem", {"HOME": "/proc/nowhere"}, "HOME: the hub's cache /proc/nowhere/.cache/huggingface/hub"),
        ("hub_cache_problem", {"HOME": "/" + "x" * 300}, r"HOME: .* \(File name too long\); set HF_HOME"),
        ("hub_cache_problem", {"HF_HOME": FILE, "HOME": "/tmp"}, "HF_HOME: the hub's cache"),
    ],
)
def test_variable_when_its_folder_cannot_be_used_is_named_with_the_remedy(surroundings, check, variables, message):
    surroundings(**variables)
    line = getattr(environment, check)()
    assert re.match(message, line) and "; " in line and "\n" not in line


@pytest.mark.parametrize(
    ("check", "variables"),
    [
        ("python_problem", {}),
        ("temporary_folder_problem", {}),
        ("ray_folder_problem", {}),
        ("ray_folder_problem", {"TMPDIR": "/proc/nowhere", "RAY_TMPDIR": "/tmp/"}),
        ("shared_memory_problem", {}),
        ("metrics_folder_problem", {}),
        ("metrics_folder_problem", {"PROMETHEUS_MULTIPROC_DIR": "/tmp"}),
        ("hub_cache_problem", {"HOME": "/proc/nowhere", "HF_HOME": "/tmp/not/yet/made"}),
    ],
)
def test_surroundings_when_all_is_well_give_no_problem(surroundings, check, variables):
    surroundings(**variables)
    assert getattr(environment, check)() is None


def test_shared_memory_when_missing_or_small_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(environment, "_SHARED_MEMORY", Path("/no/such/shm"))
    assert environment.shared_memory_problem().startswith("/no/such/shm: cannot be written (no such folder); give it")
    monkeypatch.setattr(environment, "_SHARED_MEMORY", Path(tempfile.gettempdir()))
    assert environment.small_shared_memory() is None or "--shm-size" in environment.small_shared_memory()
    monkeypatch.setattr(environment, "_MIN_SHARED_BYTES", 2**62)
    assert re.search(r"has \d+ MiB, so Ray keeps .*; give it 1 GiB: in Docker", environment.small_shared_memory())


def test_temporary_folder_when_none_can_be_written_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    assert environment.temporary_folder_problem().startswith("TMPDIR: no folder for temporary files can be written (")


def test_python_when_too_old_is_told_before_anything_is_downloaded(tmp_path):
    """By make, with an interpreter that says it is an old one; pip reads the same bound, and says so by itself."""
    old = tmp_path / "python3.9"
    disguise = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[2])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{disguise}" "$@"\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for python, message in ((old, "is Python 3.9"), ("no-such-python", "is not here")):
        done = subprocess.run(
            ["make", "--silent", "install", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True
        )
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert line.startswith(f"error: {python} {message}; ") and "PYTHON=" in line
        assert done.returncode and not (tmp_path / ".venv").exists()
    needed = ".".join(map(str, environment.MIN_PYTHON))
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={needed}"
