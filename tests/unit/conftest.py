"""The families' tiny checkpoints, for every unit test that asks for `bench`."""

import hypothesis
import pytest
import torch

from helpers import checkpoints
from helpers.benches import Bench

# The same examples in every run, and no clock that a slow machine could exceed.
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    made: dict[str, Bench] = {}

    def get(name):
        if name not in made:
            torch.manual_seed(7)
            folder = tmp_path_factory.mktemp(name)
            made[name] = Bench(name, folder, (checkpoints.FAMILIES | checkpoints.TWINS)[name](folder))
        return made[name]

    return get
