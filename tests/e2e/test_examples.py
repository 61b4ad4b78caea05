"""The programs of examples/, as a user runs them, against the running system."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsr.client import Client
from helpers.pages import ROOT, blocks

EXAMPLES = ROOT / "examples"
QUESTION = "Where is the red star?"
CLIENTS = {
    "PATH": f"{ROOT / '.venv-clients/bin'}:{os.environ['PATH']}",
    "NODE_PATH": str(ROOT / ".node-clients/node_modules"),
}


@pytest.fixture(scope="module")
def scene(pictures, tmp_path_factory):
    file = tmp_path_factory.mktemp("examples") / "scene.png"
    file.write_bytes(pictures(1_130_582, 1)[0])
    return file


@pytest.fixture(scope="module")
def answer(system, scene):
    with Client(system["gateway"]) as client:
        return client.ask(scene, QUESTION, budget=16).text.strip()


def output(*command, **variables):
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_has_a_test_and_a_line_in_the_readme():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".md" and not path.name.startswith(("_", "."))}
    text = Path(__file__).read_text()
    assert {name for name in files if f'"{name}"' not in text} == set()
    assert {name for name in files if f"]({name})" not in (EXAMPLES / "README.md").read_text()} == set()


def test_ask(system, scene, answer):
    printed = output(sys.executable, EXAMPLES / "ask.py", scene, QUESTION, system["gateway"])
    assert printed.strip().startswith(answer) and "16 of 144 visual tokens" in printed


def test_ask_without_a_gateway_says_so(scene):
    command = [sys.executable, EXAMPLES / "ask.py", scene, QUESTION, "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.startswith("error: gateway: no connection"), done.stderr


def test_budgets_with_the_question_of_the_page(system, scene):
    (line,) = [block.code for block in blocks(ROOT / "docs/budget.md") if block.language == "json"]
    questions = scene.with_name("questions.jsonl")
    questions.write_text(line + json.dumps({"picture": "scene.png", "question": "What colour is the star?"}) + "\n")
    gateway = ("--gateway", system["gateway"])
    printed = output(sys.executable, EXAMPLES / "budgets.py", questions, "2", "0.11", "auto", *gateway)
    whole, two, share, _ = (row.split() for row in printed.splitlines()[1:])
    assert whole[:4] == ["1.0", "144", "100%", "100%"], printed  # of the two answers one is known, and right
    assert (two[1], share[1]) == ("2", "16") and float(two[4]) > float(share[4]) > 0, printed


def test_curl(system, scene, answer):
    events = re.findall(r"^data: (\{.*)$", output(EXAMPLES / "curl.sh", scene, QUESTION, system["http"]), re.MULTILINE)
    chunks = [json.loads(event) for event in events]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text.strip() == answer and chunks[-1]["usage"]["fsr"]["visual_tokens_kept"] == 16


def test_notebook_runs_from_top_to_bottom(system, answer, tmp_path):
    notebook = shutil.copy(EXAMPLES / "tour.ipynb", tmp_path)
    folders = {"IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    command = (Path(sys.executable).with_name("jupyter-execute"), "--inplace", "--timeout=300", notebook)
    output(*command, FSR_GATEWAY=system["gateway"], **folders)
    cells = [cell for cell in json.loads(Path(notebook).read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    texts = ["".join(out.get("text", [])) for cell in cells for out in cell["outputs"]]
    assert any(text.startswith(f"{answer} ") and "16 tokens" in text for line in texts for text in line.splitlines())
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell["outputs"]) == 2


def test_notebook_is_kept_without_outputs():
    cells = [cell for cell in json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.clients
def test_grpcurl(system, scene, answer):
    printed = output(EXAMPLES / "grpcurl.sh", scene, QUESTION, system["gateway"], **CLIENTS)
    assert "rpc Generate" in printed
    assert "".join(re.findall(r'^  "text": "(.*)"', printed, re.MULTILINE)).strip() == answer
    assert '"visual_tokens_kept": 16' in printed


@pytest.mark.clients
def test_node(system, scene, answer):
    printed = output("node", EXAMPLES / "ask_node.cjs", scene, QUESTION, system["gateway"], **CLIENTS)
    assert printed.strip().splitlines() == [answer, "16 of 144 visual tokens"]


@pytest.mark.clients
def test_node_names_what_failed(scene):
    command = ["node", EXAMPLES / "ask_node.cjs", scene, QUESTION, "127.0.0.1:1"]
    done = subprocess.run(command, env=os.environ | CLIENTS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.startswith("error: UNAVAILABLE: ")
