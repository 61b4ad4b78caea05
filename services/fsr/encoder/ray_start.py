"""Starts Ray in this process, also on a busy machine."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import psutil
import ray
import structlog

__all__ = ["start_ray"]

log = structlog.get_logger()
_STARTS = 4


def start_ray(address: str, **options: Any) -> None:
    """Joins the Ray at an address, or starts one if the address is "local".

    Ray gives its own node 30 s to start, too few on a busy machine, and has no option for it. The node is then started
    again.

    Args:
        options: more arguments of `ray.init`.
    """
    for start in range(1, _STARTS + 1):
        try:
            ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:
            # Ray raises a bare Exception if its node is late. What it raises as another kind has a lasting cause.
            if address != "local" or type(error) is not Exception or start == _STARTS:
                raise
            log.warning("Ray did not start, trying again", start=start, of=_STARTS, reason=str(error))
            late = psutil.Process().children(recursive=True)
            for process in late:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(late)
