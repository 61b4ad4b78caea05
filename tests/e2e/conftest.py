import io

import pytest

from fsr.cli.local_stack import running
from fsr_core.tiny.scenes import draw, make_scene


@pytest.fixture(scope="session")
def system(tmp_path_factory, free_ports):
    """Addresses of a running system with two decoders, and the folder of its logs."""
    logs = tmp_path_factory.mktemp("logs")
    with running("fsr-tiny", 2, free_ports(30), logs) as addresses:
        yield addresses | {"logs": logs}


@pytest.fixture(scope="session")
def pictures():
    """Distinct pictures: the first seed, and how many."""

    def draw_some(seed: int, count: int) -> list[bytes]:
        made = []
        for number in range(seed, seed + count):
            out = io.BytesIO()
            draw(make_scene(number)).save(out, "PNG")
            made.append(out.getvalue())
        return made

    return draw_some
