"""How much memory the encoder's Ray takes for large requests."""

import pytest
from ray._private import utils

from fsr.encoder.ray_start import object_store_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("shared", "chosen", "room"),
    [(24 * GIB, 10 * GIB, None), (GIB, 10 * GIB, int(0.95 * GIB)), (64 * 2**20, 10 * GIB, None)],
)
def test_object_store_when_shared_memory_is_small_fits_into_it(monkeypatch, shared, chosen, room):
    """Below Ray's minimum it is left to Ray, which takes a folder on disk."""
    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: shared)
    monkeypatch.setattr(utils, "resolve_object_store_memory", lambda available: chosen)
    assert object_store_bytes() == room
