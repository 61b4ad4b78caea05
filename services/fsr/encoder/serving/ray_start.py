"""Starts Ray in this process, also on a busy machine."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import psutil
import ray
import structlog
from ray._private import ray_constants, services, utils  # private: pyproject.toml holds ray below 2.61

__all__ = ["object_store_bytes", "start_ray"]

log = structlog.get_logger()
_STARTS = 3
_START_SECONDS = 120.0  # for each
_USABLE = 0.95  # of /dev/shm, as Ray itself reckons


def start_ray(address: str, **options: Any) -> None:
    """Joins the Ray at an address, or starts one if the address is "local".

    Ray gives its own node 30 s to start, too few on a busy machine, and has no option for it. It gets more, and if it
    still is late, it is started again: it may hang. Exits with one line if it is late each time.

    Args:
        options: more arguments of `ray.init`.
    """
    if address == "local" and (room := object_store_bytes()) is not None:
        options["object_store_memory"] = room
    for start in range(1, _STARTS + 1):
        try:
            with _patience():
                ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:
            # Ray raises a bare Exception if its node is late. What it raises as another kind has a lasting cause.
            if address != "local" or type(error) is not Exception:
                raise
            if start == _STARTS:
                reason = f"was not there within {_START_SECONDS:g} s, {_STARTS} times"
                raise SystemExit(f"error: Ray: {reason}; the machine is busy or short of memory: try later") from error
            log.warning("Ray did not start, trying again", start=start, of=_STARTS, reason=str(error))
            late = psutil.Process().children(recursive=True)
            for process in late:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(late)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Meanwhile a node that Ray starts and asks for may take `_START_SECONDS`, as long as its process lives."""
    get_node, begin = services.get_node, time.monotonic()

    def wait(*which: Any) -> Any:
        while True:
            try:
                return get_node(*which)
            except RuntimeError:  # it is not there yet
                living = any(process.name() == "raylet" for process in psutil.Process().children())
                if not living or time.monotonic() - begin > _START_SECONDS:
                    raise
                time.sleep(0.2)

    services.get_node = wait
    try:
        yield
    finally:
        services.get_node = get_node


def object_store_bytes() -> int | None:
    """Bytes of Ray's object store that fit into /dev/shm, if Ray's own choice does not; None if it does.

    Ray would rather take its choice, 30% of the memory, in a folder on disk. It still does where /dev/shm has less than
    its minimum.
    """
    room = int(utils.get_shared_memory_bytes() * _USABLE)
    chosen = utils.resolve_object_store_memory(utils.estimate_available_memory())
    return room if ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES <= room < chosen else None
