"""Watches the encoder's Ray, and starts or ends the encoder when it has ended. Ray itself lets it wait for good."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import psutil
import structlog

__all__ = ["adopt_orphans", "ends_with_ray", "ray_has_ended", "starts_again", "watch"]

log = structlog.get_logger()
_SECONDS = 0.3  # between two looks
_CONNECT_SECONDS = 1.0
_MISSES = 3  # looks in a row at which a process of Ray is not there
_STEADY_SECONDS = 60.0  # what ends a Ray sooner would end the next one too
_KILLED_SECONDS = 10.0  # that killed processes have to be gone
_PR_SET_CHILD_SUBREAPER = 36
_AGAIN = "_FSR_ENCODER_STARTS_AGAIN"  # variable of a process that another one has started in its place

Address = tuple[str, int]


@contextlib.contextmanager
def ends_with_ray(restart: bool) -> Iterator[None]:
    """Within its block, a few seconds after Ray's GCS or this node's raylet, this process starts again with a new Ray,
    or ends with status 1 if `restart` is False or Ray has lived less than a minute."""
    over, began = threading.Event(), time.monotonic()

    def end(reason: str) -> None:
        ray_has_ended(reason, restart and time.monotonic() - began >= _STEADY_SECONDS)

    thread = threading.Thread(target=watch, args=(_addresses(), over, end), name="ray-watch", daemon=True)
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
            error = _connection_error(address, _CONNECT_SECONDS)
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


def adopt_orphans() -> None:
    """From now on, on Linux, a process whose parent ends becomes a child of this one. Ray's workers outlive their
    raylet for a while, and hold their ports meanwhile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ray_has_ended(reason: str, again: bool) -> None:
    """Ends what is left of Ray. An orderly shutdown would wait for what is gone."""
    log.error("Ray has ended", reason=reason)
    rest = psutil.Process().children(recursive=True)
    for process in rest:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if again:
        psutil.wait_procs(rest, _KILLED_SECONDS)  # their ports must be free
        log.warning("starting again, with a new Ray")
        _start_again()
    print(f"error: Ray has ended: {reason}; start the encoder again", file=sys.stderr, flush=True)
    os._exit(1)


def _start_again() -> None:
    """Runs this process' command anew, in its place: the same id, environment, and standard streams.

    Not in the same interpreter: what Ray keeps in a process does not survive its GCS.
    """
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else []:
        with contextlib.suppress(OSError):
            if int(name) > 2:  # Ray's libraries leave some open
                os.set_inheritable(int(name), False)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_AGAIN: "1"})


def starts_again() -> bool:
    """Whether this process has served before, with the same settings. True once."""
    return os.environ.pop(_AGAIN, None) is not None
