"""FSR_TEST_ENGINE chooses the engine under test: transformers (the default) or vllm."""

from dataclasses import replace

import pytest
import torch

from fsr_core.backbones import load_decoder
from helpers import checkpoints
from helpers.replicas import SHAPES, Ask, question, random_image, served, serving


@pytest.fixture(scope="session", params=served("fsr-tiny", *checkpoints.MULTI_AXIS))
def checkpoint(request, tmp_path_factory):
    """What is served: the embedded model, and a tiny checkpoint of each family with positions of its own.

    Tests that say nothing about families are marked TINY, and run with the embedded model alone.
    """
    if request.param == "fsr-tiny":
        return request.param
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(7)
    checkpoints.FAMILIES[request.param](folder)
    return str(folder)


@pytest.fixture(scope="session")
def replica(checkpoint, tmp_path_factory):
    """Room for all that the tests ask of it at a time."""
    options = ("--kv-memory", "64MiB", "--prefill-tokens", "32", "--default-max-tokens", "24")
    with serving(tmp_path_factory.mktemp("replica") / "log", "--model", checkpoint, *options) as started:
        yield started


@pytest.fixture
def start(tmp_path, checkpoint):
    """Starts a replica of the test's own."""
    return lambda *options: serving(tmp_path / "log", "--model", checkpoint, *options)


@pytest.fixture(scope="session")
def model(checkpoint):
    """The same checkpoint in this process."""
    return load_decoder(checkpoint)


@pytest.fixture(scope="session")
def asks(model):
    return {name: question(model, *shape, seed=at) for at, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture(scope="session")
def shows(model):
    """Conversations by name. The positions of the long video reach beyond the text after it."""
    picture, small = random_image(model, 140, 1), random_image(model, 9, 2, (1, 8, 6))
    four = (0.3, 1.5, 2.3, 3.1)
    video, last = random_image(model, 30, 3, (4, 6, 6), four), random_image(model, 4, 4, (4, 6, 6), four)
    # Tokens of the last frame alone: the frames before it have none, and still take their time and place.
    positions = last.positions.clone()
    positions[:, 0] = 3
    last = replace(last, positions=positions)
    first = replace(last, positions=positions * torch.tensor([0, 1, 1]))
    parts = {
        "pictures": (picture, "what colour", small, "is the star?"),
        "touching pictures": (small, picture, "is the star?"),
        "video": (video, "what colour is the star?"),
        "first frames empty": (last, "what colour?"),
        "last frames empty": (first, "what colour?"),
        "long video": (random_image(model, 50, 5, (60, 2, 2), tuple(0.5 * step for step in range(60))), "what?"),
        "video and picture": (video, small, "which star?"),
    }
    return {name: Ask(model, *those) for name, those in parts.items()}
