"""The embedded model's training on a handful of scenes and steps: every stage, and a stop in each of them."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fsr_core.backbones import load_decoder, load_encoder
from fsr_core.tiny.training import __main__ as train
from fsr_core.tiny.training import optimiser

STEPS = ["--scenes", "64", "--threads", "1", "--vision-steps", "4", "--layout-steps", "3"]
STEPS += ["--text-steps", "3", "--images-steps", "3"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def _interrupted(stage, arguments, monkeypatch):
    """Runs a stage that is stopped before its third step, and then again."""
    step = optimiser.Optimiser.step

    def stopped(self, loss, at, of):
        if at == 2:
            raise KeyboardInterrupt
        step(self, loss, at, of)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optimiser.Optimiser, "step", stopped)
        train.main([*arguments, "--stage", stage])
    train.main([*arguments, "--stage", stage])


@pytest.mark.cluster  # three minutes of CPU time
def test_a_training_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole = [*STEPS, "--work", str(tmp_path / "whole"), "--out", str(tmp_path / "whole-out")]
    subprocess.run([sys.executable, "-m", "fsr_core.tiny.training", *whole], check=True, capture_output=True)
    monkeypatch.setattr(optimiser, "CHECKPOINT_INTERVAL", 1)
    parts = [*STEPS, "--work", str(tmp_path / "parts"), "--out", str(tmp_path / "parts-out")]
    for stage in ("vision", "layout", "text", "images"):
        _interrupted(stage, parts, monkeypatch)
    train.main([*parts, "--stage", "export"])
    for file in sorted((tmp_path / "whole-out").glob("**/*.safetensors")):
        first, second = load_file(file), load_file(tmp_path / "parts-out" / file.relative_to(tmp_path / "whole-out"))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    load_encoder(str(tmp_path / "parts-out"))
    load_decoder(str(tmp_path / "parts-out"))


def test_a_stage_whose_forerunner_is_missing_says_so(tmp_path):
    with pytest.raises(SystemExit, match="run the stage 'vision' first"):
        train.main([*STEPS, "--work", str(tmp_path), "--out", str(tmp_path / "out"), "--stage", "images"])
