"""Log lines: one JSON object each, and never long."""

import json

import pytest
import structlog

from fsr.common.telemetry import configure_logging


@pytest.fixture
def log(capsys):
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
        (line,) = capsys.readouterr().err.splitlines()
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
