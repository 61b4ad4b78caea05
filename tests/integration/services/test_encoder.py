"""An encoder that cannot start says why in one line, before Ray starts."""

import subprocess
import sys

import pytest

from helpers import checkpoints


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    checkpoints.llava(folder)
    return folder


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), "error: --clip: no CLIP text side is known for"),
        (("--family-options", '{"layout": "tiles"}'), "error: --family-options: llava has no option 'layout'"),
    ],
)
def test_start_when_the_checkpoint_is_wrong_then_one_line_names_it(llava, flags, reason):
    command = [sys.executable, "-m", "fsr.encoder", "--model", str(llava), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(reason) and "Traceback" not in done.stderr
