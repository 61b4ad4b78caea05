"""Starts Ray in this process, also on a busy machine."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import psutil
import ray
import structlog
from ray._private import ray_constants, utils  # private: pyproject.toml holds ray below 2.61

__all__ = ["object_store_bytes", "start_ray"]

log = structlog.get_logger()
_STARTS = 4
_USABLE = 0.95  # of /dev/shm, as Ray itself reckons


def start_ray(address: str, **options: Any) -> None:
    """Joins the Ray at an address, or starts one if the address is "local".

    Ray gives its own node 30 s to start, too few on a busy machine, and has no option for it. The node is then started
    again. Exits with one line if it is late each time.

    Args:
        options: more arguments of `ray.init`.
    """
    if address == "local" and (room := object_store_bytes()) is not None:
        options["object_store_memory"] = room
    for start in range(1, _STARTS + 1):
        try:
            ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:
            # Ray raises a bare Exception if its node is late. What it raises as another kind has a lasting cause.
            if address != "local" or type(error) is not Exception:
                raise
            if start == _STARTS:
                reason = f"was not there within 30 s, {_STARTS} times"
                raise SystemExit(f"error: Ray: {reason}; the machine is busy or short of memory: try later") from error
            log.warning("Ray did not start, trying again", start=start, of=_STARTS, reason=str(error))
            late = psutil.Process().children(recursive=True)
            for process in late:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(late)


def object_store_bytes() -> int | None:
    """Bytes of Ray's object store that fit into /dev/shm, if Ray's own choice does not; None if it does.

    Ray would rather take its choice, 30% of the memory, in a folder on disk. It still does where /dev/shm has less than
    its minimum.
    """
    room = int(utils.get_shared_memory_bytes() * _USABLE)
    chosen = utils.resolve_object_store_memory(utils.estimate_available_memory())
    return room if ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES <= room < chosen else None
