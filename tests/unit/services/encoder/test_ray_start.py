"""The start of the encoder's Ray: how much memory it takes for large requests, and when it is late."""

import pytest
import ray
from ray._private import utils

from fsr.encoder.serving import ray_start
from fsr.encoder.serving.ray_start import object_store_bytes, start_ray

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


def test_ray_when_it_is_late_each_time_is_one_line(monkeypatch):
    def late(**options):
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray_start, "_STARTS", 1)
    with pytest.raises(
        SystemExit, match=r"error: Ray: was not there within 120 s, 1 times; the machine is busy.*: try"
    ):
        start_ray("local")
