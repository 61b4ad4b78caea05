import contextlib
import io
import os
import socket

import pytest

from fsr_core.tiny.scenes import draw, make_scene
from services.client.up import running


def free_ports() -> int:
    """The first of thirty free ports in a row, below those that outgoing connections take."""
    for base in range(10000 + 30 * (os.getpid() % 100), 20000, 30):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(base, base + 30):
                probes.enter_context(socket.create_server(("", port)))
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
