"""On a Ray of several nodes: replicas follow the load, and neither scaling nor a dead node costs a request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(1200)
def test_replicas_follow_the_load_and_a_dead_node_costs_nothing(tmp_path, capsys):
    plot = Path(os.environ.get("FSR_PICTURES", tmp_path)) / "autoscaling.png"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.autoscaling", "--plot", str(plot)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0
    told = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():  # what docs/scaling.md tells of the run
        print(f"\n{json.dumps(told, indent=1)}")
    assert (told["failed"], told["errors"]) == (0, [])
    assert told["rose_to_3"] and told["fell_to_1"] and told["rose_again"] and told["most_replicas"] == 3
    assert told["noticed"] and told["replaced"]
    assert told["requests_after_kill"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
