"""Methods of third parties, registered by a call. Those of installed packages: tests/integration/fsr_core."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fsr_core
from fsr_core import Compressor, VisualTokens, create, methods, register


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


def test_registered_method_is_created_by_name(registered):
    assert "mine" in methods()
    assert create("mine", strength=2.0) == Mine(2.0)
    register("mine", Mine)
    with pytest.raises(ValueError, match="strength"):
        create("mine", force=1)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("fsr", Mine, "already a method 'fsr'"),
        ("mine", type("Other", (Mine,), {}), "already a method 'mine'"),
        ("Not a name", Mine, "not a method name"),
        ("theirs", object, "extends Compressor"),
        ("theirs", Mine(), "extends Compressor"),
    ],
)
def test_bad_registration_is_refused(registered, name, method, message):
    with pytest.raises(ValueError, match=message):
        register(name, method)


def test_no_method_is_registered_by_default():
    assert "mine" not in methods()


def test_method_of_the_manual_works(registered):
    text = (Path(__file__).parents[3] / "docs/methods.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "register" in block]
    exec(compile(code, "docs/methods.md", "exec"), {"__name__": "manual"})
    sample = VisualTokens(torch.eye(4), torch.ones(4), torch.tensor([0.0, 3.0, 1.0, 2.0]))
    assert create("most_relevant").compress(sample, 2).index.tolist() == [1, 3]
