import io
import socket

import pytest

from fsr_core.tiny.scenes import draw, make_scene
from services.client.up import running


def free_ports() -> int:
    """The first of thirty free ports in a row."""
    for base in range(42000, 60000, 30):
        taken = False
        for port in range(base, base + 30):
            with socket.socket() as probe:
                taken = taken or probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            return base
    raise RuntimeError("no thirty free ports in a row")


@pytest.fixture(scope="session")
def ports():
    return free_ports


@pytest.fixture(scope="session")
def system(tmp_path_factory):
    """Addresses of a running system with two decoders, and the folder of its logs."""
    logs = tmp_path_factory.mktemp("logs")
    with running("fsr-tiny", 2, free_ports(), logs) as addresses:
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
