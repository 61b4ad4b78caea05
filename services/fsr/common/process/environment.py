"""What a service needs of the machine and of the environment around it, checked before it starts.

Each check returns None if all is well, or one line that names what is wrong and what to do.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

__all__ = [
    "exit_on",
    "hub_cache_problem",
    "metrics_folder_problem",
    "python_problem",
    "ray_folder_problem",
    "shared_memory_problem",
    "small_shared_memory",
    "temporary_folder_problem",
]

MIN_PYTHON = (3, 11)  # as in pyproject.toml
_MIB = 2**20
_SHARED_MEMORY = Path("/dev/shm")
_MIN_SHARED_BYTES = 512 * _MIB
_MORE_SHARED_MEMORY = "give it 1 GiB: in Docker --shm-size=1g, on Kubernetes an emptyDir of medium Memory"
_MAX_SOCKET_BYTES = 107  # of the path of a Unix socket
# What Ray 2.60 appends to its folder for a socket; the id of the process that starts Ray comes after the time.
_SOCKET = "/ray/session_2026-01-31_23-59-59_123456_{pid}/sockets/plasma_store"


def exit_on(*problems: str | None) -> None:
    """Exits with a line for each problem, if there is any."""
    found = [f"error: {problem}" for problem in problems if problem is not None]
    if found:
        raise SystemExit("\n".join(found))


def python_problem() -> str | None:
    """Whether this Python is too old."""
    if sys.version_info[:2] >= MIN_PYTHON:
        return None
    needed = ".".join(map(str, MIN_PYTHON))
    return f"Python: {sys.version.split()[0]} is too old; make an environment with Python {needed} or newer"


def temporary_folder_problem() -> str | None:
    """Whether no folder for temporary files can be written. Python itself passes over a TMPDIR that cannot be."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        return f"TMPDIR: no folder for temporary files can be written ({error.strerror}); set TMPDIR to one that can"
    return None


def ray_folder_problem() -> str | None:
    """Whether a Ray that is started here could not write its folder, or not open its sockets in it."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    remedy = "set RAY_TMPDIR to a short path, such as /tmp"
    if not os.path.isabs(folder):
        return f"{name}: {folder!r} is no absolute path, which Ray needs; {remedy}"
    if not folder.isascii():
        return f"{name}: {folder} has characters that are not ASCII, which Ray cannot take; {remedy}"
    most = _MAX_SOCKET_BYTES - len(_SOCKET.format(pid=os.getpid()))
    length = len(folder.rstrip("/"))
    if length > most:
        return f"{name}: {folder} is too long for Ray's sockets, {length} bytes of at most {most}; {remedy}"
    reason = _why_not_writable(Path(folder) / "ray")
    return f"{name}: Ray cannot write its folder {folder}/ray ({reason}); {remedy}" if reason else None


def shared_memory_problem() -> str | None:
    """Whether Ray could not start, because /dev/shm is missing or cannot be written."""
    reason = _why_not_writable(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else "no such folder"
    return f"{_SHARED_MEMORY}: cannot be written ({reason}); {_MORE_SHARED_MEMORY}" if reason else None


def small_shared_memory() -> str | None:
    """Whether /dev/shm is so small that Ray keeps large requests on disk, all of them below 79 MiB, which is slow."""
    status = os.statvfs(_SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if free >= _MIN_SHARED_BYTES:
        return None
    return f"{_SHARED_MEMORY}: has {free // _MIB} MiB, so Ray keeps large requests on disk; {_MORE_SHARED_MEMORY}"


def metrics_folder_problem() -> str | None:
    """Whether the folder of Prometheus' multiprocess mode, if the environment asks for that mode, cannot be written."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        folder = os.environ.get(name)
        if folder is None:
            continue
        reason = _why_not_writable(Path(folder)) if os.path.isdir(folder) else "no such folder"
        if reason:
            remedy = "make the folder, or unset the variable: no service needs it"
            return f"{name}: {folder!r} cannot be used ({reason}); {remedy}"
    return None


def hub_cache_problem() -> str | None:
    """Whether a checkpoint of the hub could not be stored: its cache is below HOME if nothing else is set."""
    set_ = {name: os.environ[name] for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME") if os.environ.get(name)}
    name = next(iter(set_), "HOME")
    below = {
        "HF_HUB_CACHE": "",
        "HF_HOME": "hub",
        "XDG_CACHE_HOME": "huggingface/hub",
        "HOME": ".cache/huggingface/hub",
    }
    folder = Path(os.path.expanduser(set_.get(name, "~")), below[name])
    reason = _why_not_writable(folder) if folder.is_absolute() else "no absolute path"
    if reason is None:
        return None
    return f"{name}: the hub's cache {folder} cannot be written ({reason}); set HF_HOME to a folder that can"


def _why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder, or in the nearest one above it that exists; None if one can."""
    try:
        while not _exists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _exists(path: Path) -> bool:
    """Raises OSError for a path that cannot exist, as one that is too long."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
