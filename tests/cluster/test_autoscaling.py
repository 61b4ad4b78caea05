"""On a Ray of several nodes the replicas follow the load. Neither scaling nor a dead node fails a request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(1200)
def test_replicas_follow_the_load_and_survive_a_dead_node(tmp_path, capsys):
    plot = Path(os.environ.get("FSR_PICTURES", tmp_path)) / "autoscaling.png"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.autoscaling", "--plot", str(plot)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0
    result = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():  # the figures of docs/scaling.md
        print(f"\n{json.dumps(result, indent=1)}")
    assert (result["failed"], result["errors"]) == (0, [])
    assert result["rose_to_3"] and result["fell_to_1"] and result["rose_again"] and result["most_replicas"] == 3
    assert result["noticed"] and result["replaced"]
    assert result["requests_after_kill"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
