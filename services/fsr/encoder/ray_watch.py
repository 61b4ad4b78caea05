"""Ends the encoder's process when its Ray has ended. Ray itself lets it wait for good."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import psutil
import structlog

__all__ = ["ends_with_ray", "watch"]

log = structlog.get_logger()
_SECONDS = 1.0  # between two looks
_MISSES = 3  # looks in a row at which a process of Ray is not there

Address = tuple[str, int]


@contextlib.contextmanager
def ends_with_ray() -> Iterator[None]:
    """Within its block this process ends, with status 1, a few seconds after Ray's GCS or this node's raylet."""
    over = threading.Event()
    thread = threading.Thread(target=watch, args=(_addresses(), over, _end), name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def watch(
    addresses: Mapping[str, Address], over: threading.Event, end: Callable[[str], None], every: float = _SECONDS
) -> None:
    """Calls `end` with the reason when one of the addresses takes no connections any more; returns then, or at `over`.

    A kernel accepts connections for a process that is only slow or frozen.
    """
    misses = dict.fromkeys(addresses, 0)
    while not over.wait(every):
        for name, address in addresses.items():
            error = _connection_error(address, every)
            misses[name] = 0 if error is None else misses[name] + 1
            if misses[name] == _MISSES:
                end(f"{name} does not answer at {address[0]}:{address[1]} ({error})")
                return


def _connection_error(address: Address, timeout: float) -> OSError | None:
    try:
        socket.create_connection(address, timeout).close()
    except OSError as error:
        return error
    return None


def _addresses() -> dict[str, Address]:
    """Where Ray's GCS and the raylet of this node listen."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    addresses = {"Ray's GCS": (host.strip("[]"), int(port))}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            addresses["Ray's raylet"] = (node["NodeManagerAddress"], node["NodeManagerPort"])
    return addresses


def _end(reason: str) -> None:
    """Ends this process and what is left of its Ray. An orderly shutdown would wait for what is gone."""
    log.error("Ray has ended", reason=reason)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    print(f"error: Ray has ended: {reason}; start the encoder again", file=sys.stderr, flush=True)
    os._exit(1)
