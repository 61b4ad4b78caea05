"""Methods that an installed package announces are found by their names."""

import os
import subprocess
import sys

THEIRS = """
from dataclasses import dataclass
from fsr_core.baselines.cls_topk import ClsTopK

@dataclass(frozen=True)
class Mine(ClsTopK):
    name = "mine"
    strength: float = 1.0
"""


def test_installed_package_announces_methods(tmp_path):
    (tmp_path / "theirs.py").write_text(THEIRS)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fsr_core.methods]\nmine = theirs:Mine\nbroken = theirs:Gone\nrandom = theirs:Mine\n"
    )
    code = """
import warnings
from fsr_core import create, methods
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert methods()[-2:] == ("mine", "broken"), methods()
assert "'random'" in str(caught[0].message)
assert create("mine", strength=3).strength == 3
assert type(create("random")).__name__ == "Random"
try:
    create("broken")
except ValueError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'broken' (theirs:Gone) cannot be loaded" in done.stdout
