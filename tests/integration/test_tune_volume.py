"""`python -m benchmarks.tune_volume` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_command_tunes_on_validation_scenes_of_a_checkpoint(tmp_path):
    few = ["--limit", "3", "--budgets", "8", "--all-budgets", "16,8", "--methods", "fsr"]
    command = [sys.executable, "-m", "benchmarks.tune_volume", *few, "--out", str(tmp_path), "--json"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert len(figures["checked"]) == 2 and figures["tried"][0]["options"] == {}
    folders = {path.name for path in tmp_path.glob("cache/*/*") if path.is_dir()}
    assert folders == {"validation-0-3", "validation-3-6"}
    assert {path.name for path in tmp_path.glob("cache/*/*.safetensors")} == {"validation-6.safetensors"}
