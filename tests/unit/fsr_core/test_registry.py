"""Methods of third parties: registered by one call, or announced by an installed package."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fsr_core
from fsr_core import Compressor, VisualTokens, create, methods, register
from fsr_core.compressor import _REGISTERED

THEIRS = """
from dataclasses import dataclass
from fsr_core.baselines.cls_topk import ClsTopK

@dataclass(frozen=True)
class Mine(ClsTopK):
    name = "mine"
    strength: float = 1.0
"""


@dataclass(frozen=True)
class Mine(Compressor):
    name = "mine"
    strength: float = 1.0

    def compress_batch(self, samples, budgets):
        return []


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("fsr_core.compressor._REGISTERED", {})
    fsr_core.register("mine", Mine)


def test_a_registered_method_is_made_by_name(registered):
    assert "mine" in methods()
    assert create("mine", strength=2.0) == Mine(2.0)
    register("mine", Mine)
    with pytest.raises(ValueError, match="strength"):
        create("mine", force=1)


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("fsr", Mine, "already a method 'fsr'"),
        ("mine", type("Other", (Mine,), {}), "already a method 'mine'"),
        ("Not a name", Mine, "not a method name"),
        ("theirs", object, "extends Compressor"),
        ("theirs", Mine(), "extends Compressor"),
    ],
)
def test_what_cannot_be_registered(registered, name, method, says):
    with pytest.raises(ValueError, match=says):
        register(name, method)


def test_nothing_is_registered_by_default():
    assert _REGISTERED == {}


def test_the_manuals_own_method_works(registered):
    text = (Path(__file__).parents[3] / "docs/methods.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "register" in block]
    exec(compile(code, "docs/methods.md", "exec"), {"__name__": "manual"})
    sample = VisualTokens(torch.eye(4), torch.ones(4), torch.tensor([0.0, 3.0, 1.0, 2.0]))
    assert create("most_relevant").compress(sample, 2).index.tolist() == [1, 3]


def test_an_installed_package_announces_methods(tmp_path):
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
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    assert methods()[-2:] == ("mine", "broken"), methods()
assert "'random'" in str(told[0].message)
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
