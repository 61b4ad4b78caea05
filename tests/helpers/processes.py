"""The processes of our services among all of this machine's."""

from collections.abc import Iterator

import psutil

__all__ = ["encoder_proxy", "encoder_replica", "encoder_workers", "process_of"]


def process_of(service: str, port: str) -> psutil.Process:
    """The one of `fsr.<service>` at this port."""
    (process,) = (p for p in psutil.process_iter() if {f"fsr.{service}", port} <= set(_command(p)))
    return process


def encoder_replica(port: str) -> psutil.Process:
    """Ray's worker that holds the model of the encoder at this port."""
    (replica,) = encoder_workers(port, "ServeReplica:encoder:Encoder")
    return replica


def encoder_proxy(port: str) -> psutil.Process:
    """Ray's worker that listens there."""
    (proxy,) = encoder_workers(port, "ProxyActor")
    return proxy


def encoder_workers(port: str, name: str) -> Iterator[psutil.Process]:
    """Ray's workers of the encoder at this port that have `name` in their command lines."""
    return (p for p in process_of("encoder", port).children(recursive=True) if name in " ".join(_command(p)))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
