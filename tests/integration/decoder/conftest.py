"""FSR_TEST_ENGINE chooses the engine under test: transformers (the default) or vllm."""

import pytest

from fsr_core.backbones import load_decoder
from helpers.replicas import SHAPES, Ask, serving


@pytest.fixture(scope="session")
def replica(tmp_path_factory):
    """Room for all that the tests ask of it at a time."""
    options = ("--kv-memory", "64MiB", "--prefill-tokens", "32", "--default-max-tokens", "24")
    with serving(tmp_path_factory.mktemp("replica") / "log", *options) as started:
        yield started


@pytest.fixture
def start(tmp_path):
    """Starts a replica of the test's own."""
    return lambda *options: serving(tmp_path / "log", *options)


@pytest.fixture(scope="session")
def model():
    """The same checkpoint in this process."""
    return load_decoder("fsr-tiny")


@pytest.fixture(scope="session")
def asks(model):
    return {name: Ask(model, *shape, seed=at) for at, (name, shape) in enumerate(SHAPES.items())}
