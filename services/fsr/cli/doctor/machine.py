"""Ports, memory, folders and the environment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fsr.cli.doctor.finding import Finding, finding
from fsr.cli.stack.plan import Plan, PortTaken
from fsr.common.process import environment

__all__ = ["cpus", "folders", "memory", "ports", "proxies", "shared_memory"]

_GIB = 2**30
_NEEDED_BYTES = 3 * _GIB  # a system with the embedded model and one decoder has 1.6 when nobody asks, and grows
_NEEDED_DISK_BYTES = 1 * _GIB
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MEMORY, _MEMORY_LIMIT, _MEMORY_USED = (
    Path(path) for path in ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def ports(plan: Plan) -> Finding:
    """Whether every service can listen on its port."""
    first, last = min(plan.ports.values()), max(plan.ports.values())
    error = warning = None
    try:
        plan.check_ports()
    except PortTaken as taken:
        error = str(taken)
    try:
        low, high = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):  # not Linux
        low, high = 1 << 16, 0
    if first <= high and last >= low:
        warning = (
            f"{first} to {last} are also ports of outgoing connections ({low} to {high}), and one of these may be "
        )
        warning += f"open when a service starts; choose a --port below {low}"
    return finding("ports", f"{len(plan.ports)} from {first} to {last} are free", error, warning)


def cpus() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    warning = "1 CPU for all services; they start, and answer slowly" if count < 2 else None
    return finding("CPUs", str(count), None, warning)


def memory() -> Finding:
    """Memory that is free, in a container that of the container."""
    free = _free_memory()
    if free is None:
        return Finding("warning", "memory", f"cannot be read from {_MEMORY}; the services should have 3 GiB")
    text = f"{free / _GIB:.1f} GiB are free"
    warning = None
    if free < _NEEDED_BYTES:
        warning = f"{text}, and a system of the embedded model should have {_NEEDED_BYTES // _GIB} GiB; close other "
        warning += "programs or give the container more. Without memory Ray ends the encoder's replicas"
    return finding("memory", text, None, warning)


def _free_memory() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        return min(free, int(_MEMORY_LIMIT.read_text()) - int(_MEMORY_USED.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def shared_memory() -> Finding:
    error = environment.shared_memory_problem()
    return finding("/dev/shm", "is large enough", error, None if error else environment.small_shared_memory())


def folders() -> Iterator[Finding]:
    """Folders that the services write to."""
    error = environment.temporary_folder_problem()
    if error is None:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        little = f"{folder} has {free / _GIB:.1f} GiB free; make room, or set TMPDIR and RAY_TMPDIR to another disk"
        warning = little if free < _NEEDED_DISK_BYTES else None
        yield finding("disk", f"{free / _GIB:.0f} GiB are free in {folder}", None, warning)
    for subject, problem in (
        ("TMPDIR", error),
        ("Ray's folder", environment.ray_folder_problem()),
        ("metrics folder", environment.metrics_folder_problem()),
    ):
        yield finding(subject, "is fine", problem)


def proxies() -> Finding:
    """Whether a proxy is set, and for what it is used."""
    names = [name for name in _PROXIES for name in (name, name.upper()) if os.environ.get(name)]
    if not names:
        return Finding("ok", "proxies", "none is set")
    text = f"{', '.join(names)}: used to download models, never between services, nor to a gateway on this machine"
    return Finding("ok", "proxies", text)
