"""Log lines: one JSON object each, never long; and those that cannot be written, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest
import structlog

from fsr.common.telemetry.logs import configure_logging

PROGRAM = """
import sys
from fsr.common.telemetry.logs import configure_logging, lines_lost, log_end
configure_logging("gateway", "info")
for i in range(3):
    log_end("Generate", "OK", 0.0, number=i)
print(lines_lost())
"""


@pytest.fixture
def log(capfd):
    """Writes a line by the service's own configuration; returns what it was."""

    def write(**fields):
        configure_logging("test", "info")
        try:
            try:
                raise ValueError("x" * 100_000)
            except ValueError:
                structlog.get_logger().info("event", **fields)
        finally:
            structlog.reset_defaults()
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return write


def test_line_when_its_fields_hold_a_caller_s_text_is_bounded(log):
    line = log(reason="ü" * 10_000_000, addresses=["a" * 100_000] * 1000, exc_info=True, code="OK", seconds=0.5)
    assert len(line) < 200_000
    fields = json.loads(line)
    assert fields["code"] == "OK" and fields["seconds"] == 0.5 and fields["exception"].startswith("Traceback")


def test_line_when_its_fields_are_short_is_complete(log):
    fields = json.loads(log(reason="model: is unknown", encoders=["127.0.0.1:1", "127.0.0.1:2"]))
    assert fields["reason"] == "model: is unknown" and fields["encoders"] == ["127.0.0.1:1", "127.0.0.1:2"]


def run(**options):
    return subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=False, **options)


def test_lines_when_they_can_be_written_are_json():
    done = run(stderr=subprocess.PIPE)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["number"] for line in lines] == [0, 1, 2] and lines[0]["service"] == "gateway"
    assert done.stdout == "0\n" and done.returncode == 0


@pytest.mark.parametrize("standard_error", ["full", "closed", "no reader"])
def test_lines_when_they_cannot_be_written_are_lost_and_counted(standard_error):
    options = {"stderr": open("/dev/full", "wb")} if standard_error == "full" else {}  # noqa: SIM115
    if standard_error == "closed":
        options = {"preexec_fn": lambda: os.close(2)}
    if standard_error == "no reader":
        reader, writer = os.pipe()
        os.close(reader)
        options = {"stderr": open(writer, "wb")}  # noqa: SIM115
    done = run(**options)
    if "stderr" in options:
        options["stderr"].close()
    assert (done.stdout, done.returncode) == ("3\n", 0)
