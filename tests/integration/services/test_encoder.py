"""An encoder process that cannot start says why, before Ray does."""

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
    ("flags", "says"),
    [
        ((), "error: --clip: no CLIP text side is known for"),
        (("--family-options", '{"layout": "tiles"}'), "error: --family-options: llava has no option 'layout'"),
    ],
)
def test_a_checkpoint_that_does_not_do_is_named_in_one_line(llava, flags, says):
    command = [sys.executable, "-m", "fsr.encoder", "--model", str(llava), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(says) and "Traceback" not in done.stderr
