"""The families' tiny checkpoints, for every unit test that asks for `bench`."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "fsr_core" / "backbones"))
import checkpoints
from benches import Bench

# The same examples in every run, and no clock that a slow machine could exceed.
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    made: dict[str, Bench] = {}

    def get(name):
        if name not in made:
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(name)
            made[name] = Bench(name, folder, checkpoints.FAMILIES[name](folder))
        return made[name]

    return get
