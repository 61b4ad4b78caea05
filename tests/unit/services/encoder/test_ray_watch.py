"""The watch over Ray's processes, with sockets in their place."""

import socket
import threading

import pytest

from fsr.encoder.ray_watch import watch


@pytest.fixture
def parts():
    with socket.create_server(("127.0.0.1", 0)) as gcs, socket.create_server(("127.0.0.1", 0)) as raylet:
        yield {"Ray's GCS": gcs, "Ray's raylet": raylet}


def start(parts):
    """A watch in a thread, the reasons that it gave, and the event that ends it."""
    reasons, over = [], threading.Event()
    addresses = {name: part.getsockname() for name, part in parts.items()}
    thread = threading.Thread(target=watch, args=(addresses, over, reasons.append, 0.01))
    thread.start()
    return thread, reasons, over


@pytest.mark.parametrize("name", ["Ray's GCS", "Ray's raylet"])
def test_watch_when_a_part_of_ray_is_gone_names_it(parts, name):
    thread, reasons, _ = start(parts)
    parts[name].close()
    thread.join(60)
    assert len(reasons) == 1 and reasons[0].startswith(f"{name} does not answer at 127.0.0.1:")


def test_watch_when_it_is_over_says_nothing(parts):
    """A part that is only busy takes its connections late."""
    thread, reasons, over = start(parts)
    for _ in range(3):
        connection, _ = parts["Ray's GCS"].accept()
        connection.close()
    over.set()
    thread.join(60)
    assert reasons == []
