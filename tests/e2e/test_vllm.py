"""The whole system with vLLM's decoder, which runs in an environment of its own."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fsr.cli.options import SCENE
from fsr.client import Client
from fsr_core.tiny.scenes import scene_png

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.vllm


@pytest.fixture
def started(free_ports, tmp_path):
    """`fsr up --engine vllm` as a user runs it in the checkout; its addresses."""
    command = [sys.executable, "-m", "fsr.cli.main", "up", "--engine", "vllm", "--json", "--port", str(free_ports(30))]
    command += ["--engine-options", '{"enforce_eager": true}', "--logs", str(tmp_path / "logs")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


def test_up_with_vllm_answers_a_question(started):
    with Client(started["gateway"]) as client:
        answer = client.ask(scene_png(SCENE), "Is there a red star?", budget=16)
    assert answer.text.strip() == "yes" and answer.usage.visual_tokens_kept == 16
    page = urllib.request.urlopen(f"http://{started['decoder-0-metrics']}/metrics").read().decode()
    assert "vllm:generation_tokens_total" in page
