import socket

import pytest

from services.client.up import running


def free_ports() -> int:
    """The first of twenty free ports in a row."""
    for base in range(42000, 60000, 20):
        taken = False
        for port in range(base, base + 20):
            with socket.socket() as probe:
                taken = taken or probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            return base
    raise RuntimeError("no twenty free ports in a row")


@pytest.fixture(scope="session")
def ports():
    return free_ports


@pytest.fixture(scope="session")
def system(tmp_path_factory):
    """Addresses of a running system with two decoders."""
    with running("fsr-tiny", 2, free_ports(), tmp_path_factory.mktemp("logs")) as addresses:
        yield addresses
