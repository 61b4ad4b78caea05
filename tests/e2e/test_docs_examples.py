"""The pages' examples that send requests, run as they stand but for addresses; those of a page in one session."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pages import PAGES, ROOT, blocks, name_of, sends_requests

# Runs blocks as a reader would, in one session. A traceback has the page's name and line.
SESSION = """
import ast, asyncio, inspect, json, sys
page, blocks = json.load(sys.stdin)
names = {"__name__": "__main__"}
for line, code in blocks:
    print(f"-- {line}", flush=True)
    lines = compile("\\n" * (line - 1) + code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(lines, names)
    if inspect.iscoroutine(waiting):
        asyncio.run(waiting)
"""
# Blocks that the running system cannot answer: its model takes no videos.
NOT_RUN = {("docs/models.md", "Video.from_folder")}


def examples(*languages):
    """The blocks that send requests, by page."""
    found = {}
    for page in PAGES:
        name = name_of(page)
        some = [block for block in blocks(page) if block.language in languages and sends_requests(block)]
        some = [block for block in some if not any(name == other and text in block.code for other, text in NOT_RUN)]
        if some:
            found[name] = some
    return found


PYTHON, SHELL = examples("python"), examples("sh")


def with_addresses(code, system):
    for port, address in ((20052, system["http"]), (20050, system["gateway"])):
        code = re.sub(rf"(127\.0\.0\.1|localhost|gateway):{port}", address, code)
    return code


@pytest.fixture
def folder(tmp_path, pictures):
    """Has the files that the examples read, and a `curl` that fails where the gateway answers with an error."""
    (tmp_path / "scene.png").write_bytes(pictures(1_130_582, 1)[0])
    (tmp_path / "other.png").write_bytes(pictures(801, 1)[0])
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin/curl"
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("curl")} --fail-with-body --show-error "$@"\n')
    shim.chmod(0o755)
    return tmp_path


def output(command, folder, text=None, **variables):
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    done = subprocess.run(command, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pages_have_examples():
    assert {"README.md", "docs/sdk.md", "docs/http.md", "docs/from-vllm.md", "docs/methods.md"} <= PYTHON.keys()
    assert {"README.md", "docs/http.md"} <= SHELL.keys()


@pytest.mark.parametrize("page", PYTHON)
def test_python_of_a_page_works(page, system, folder):
    session = [page, [[block.line, with_addresses(block.code, system)] for block in PYTHON[page]]]
    printed = output([sys.executable, "-c", SESSION], folder, json.dumps(session))
    for block in PYTHON[page]:
        after = printed.partition(f"-- {block.line}\n")[2].partition("\n-- ")[0]
        assert after.strip() or "print(" not in block.code, f"{page}:{block.line} prints nothing"


@pytest.mark.parametrize("page", SHELL)
def test_shell_of_a_page_works(page, system, folder):
    for block in SHELL[page]:
        code = with_addresses(block.code, system)
        assert output(["bash", "-euo", "pipefail", "-c", code], folder).strip(), f"{page}:{block.line} prints nothing"


def test_first_minute_of_the_readme_works(system, folder):
    (folder / "scene.png").unlink()
    part = (ROOT / "README.md").read_text().partition("## The first 60 seconds")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```\n(fsr scene.*?)```", part, re.DOTALL)
    printed = output(["bash", "-euo", "pipefail", "-c", code], folder, FSR_GATEWAY=system["gateway"])
    assert "\ntop right\n" in printed and "16 of 144" in printed
    assert (folder / "scene.png").exists() and (folder / "why.png").exists()
