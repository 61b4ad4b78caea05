import io

import pytest
from PIL import Image

from fsr.cli.local_stack import running
from fsr_core.tiny.scenes import draw, make_scene


@pytest.fixture(scope="session")
def system(tmp_path_factory, free_ports, long_context):
    """Addresses of a running system with two decoders, and the folder of its logs."""
    logs = tmp_path_factory.mktemp("logs")
    with running(str(long_context), 2, free_ports(30), logs, wait=None) as addresses:
        yield addresses | {"logs": logs}


@pytest.fixture(scope="session")
def same_model(long_context):
    """Flags with which a decoder serves what the system's encoder serves."""
    return ("--model", str(long_context), "--served-name", long_context.name)


@pytest.fixture(scope="session")
def pictures():
    """Makes distinct pictures, from the first seed on; `large` ones take the encoder long to prepare."""

    def make(seed: int, count: int, large: bool = False) -> list[bytes]:
        return [encoded(draw(make_scene(number)), large) for number in range(seed, seed + count)]

    return make


def encoded(picture: Image.Image, large: bool) -> bytes:
    out = io.BytesIO()
    if large:
        picture.resize((1728, 1728)).save(out, "JPEG")
    else:
        picture.save(out, "PNG")
    return out.getvalue()
