"""The examples of the pages about the HTTP interface, run as they stand but for addresses. `make test-clients`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients/bin/python"
NODE_MODULES = ROOT / ".node-clients/node_modules"
_FENCE = re.compile(r"^( *)```(sh|python|js)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# Page, and the heading of the part that is meant; None for all of it.
PAGES = (("README.md", "## Ask it from an application"), ("docs/http.md", None), ("docs/from-vllm.md", None))
pytestmark = pytest.mark.clients


def examples() -> list[tuple[str, str, str]]:
    """Name, language and text of every example that sends a request."""
    found = []
    for page, heading in PAGES:
        text = (ROOT / page).read_text() if (ROOT / page).exists() else ""  # then the first test fails
        if heading:
            text = text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
        for number, (indent, language, code) in enumerate(_FENCE.findall(text)):
            code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
            if language != "sh" or "curl" in code:
                found.append((f"{page}-{number}", language, code))
    return found


EXAMPLES = examples()


@pytest.fixture
def folder(tmp_path, pictures):
    """Has the pictures that the examples read, and a `curl` that fails where the gateway answers with an error."""
    (tmp_path / "scene.png").write_bytes(pictures(800, 1)[0])
    (tmp_path / "other.png").write_bytes(pictures(801, 1)[0])
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin/curl"
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("curl")} --fail-with-body --show-error "$@"\n')
    shim.chmod(0o755)
    return tmp_path


def test_every_page_has_examples():
    assert {name.rpartition("-")[0] for name, *_ in EXAMPLES} == {page for page, _ in PAGES}


@pytest.mark.parametrize(("language", "code"), [pytest.param(*rest, id=name) for name, *rest in EXAMPLES])
def test_example_works(system, folder, language, code):
    for port, address in ((20052, system["http"]), (20050, system["gateway"])):
        code = re.sub(rf"(127\.0\.0\.1|localhost|gateway):{port}", address, code)
    if language == "python":
        command = [PYTHON if "langchain" in code else sys.executable, "-c", code]
    else:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else ["node", "-e", code]
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NODE_PATH": str(NODE_MODULES)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
