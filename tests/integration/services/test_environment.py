"""A service that cannot run in its surroundings says so before it starts."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("service", "variables", "message"),
    [
        ("gateway", {"PROMETHEUS_MULTIPROC_DIR": "/no/such"}, "PROMETHEUS_MULTIPROC_DIR: '/no/such' cannot be used"),
        ("decoder", {"PROMETHEUS_MULTIPROC_DIR": "/no/such"}, "PROMETHEUS_MULTIPROC_DIR: '/no/such' cannot be used"),
        ("encoder", {"RAY_TMPDIR": "/" + "x" * 60}, "RAY_TMPDIR: /x+ is too long for Ray's sockets"),
    ],
)
def test_service_when_it_cannot_run_here_exits_with_that_line_alone(service, variables, message):
    command = [sys.executable, "-m", f"fsr.{service}"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and re.match(f"error: {message}", line)
