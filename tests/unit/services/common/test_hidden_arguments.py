"""Secrets leave the command line."""

import subprocess
import sys

import pytest

from fsr.common.process.hidden_arguments import without

VARIABLES = {"--api-key": "KEY", "--api-keys": "KEYS"}


@pytest.mark.parametrize(
    ("given", "left", "found"),
    [
        (["--port", "1", "--api-keys", "a,b"], ["--port", "1"], {"KEYS": "a,b"}),
        (["--api-keys=a", "x"], ["x"], {"KEYS": "a"}),
        (["--api-keys=a", "--api-keys", "b"], [], {"KEYS": "a,b"}),
        (["ask", "--api-key", "a", "?"], ["ask", "?"], {"KEY": "a"}),
        (["--api-key"], ["--api-key"], {}),
        (["--api-keys", "", "x"], ["x"], {"KEYS": ""}),
        (["--api-keys-file", "f"], ["--api-keys-file", "f"], {}),
        (["--", "--api-key", "a"], ["--", "--api-key", "a"], {}),
    ],
)
def test_arguments_without_secrets(given, left, found):
    assert without(given, VARIABLES) == (left, found)


def test_process_with_a_secret_starts_again_in_place_without_it():
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fsr.common.process.hidden_arguments import hide\n"
        "first = os.environ.setdefault('FIRST', str(os.getpid()))\n"
        "hide({'--api-keys': 'KEYS'})\n"
        "shown = 9 * 'k' in Path('/proc/self/cmdline').read_text()\n"
        "print(first == str(os.getpid()), os.environ['KEYS'], sys.argv[1:], shown)"
    )
    command = [sys.executable, "-c", code, "--api-keys", 9 * "k", "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"True {9 * 'k'} ['--port', '1'] False\n", done.stderr
