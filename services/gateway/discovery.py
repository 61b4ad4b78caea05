"""Where replicas are: a fixed list, or every address that a DNS name has now."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import structlog

__all__ = ["Discovery"]

log = structlog.get_logger()
_DNS = "dns:///"


class Discovery:
    """Resolves targets: host:port stands for itself, dns:///name:port for all addresses of the name.

    A name that cannot be resolved keeps the addresses that it had: a DNS outage must not empty a pool.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self._known: dict[str, frozenset[str]] = {
            target: frozenset() if target.startswith(_DNS) else frozenset([target]) for target in targets
        }

    async def addresses(self) -> frozenset[str]:
        """All addresses now."""
        for target in self._known:
            if target.startswith(_DNS):
                await self._resolve(target)
        return frozenset().union(*self._known.values())

    async def _resolve(self, target: str) -> None:
        host, _, port = target.removeprefix(_DNS).rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            log.warning("name not resolved", target=target, reason=str(error), kept=len(self._known[target]))
            return
        hosts = {(family, str(where[0])) for family, _, _, _, where in found}
        self._known[target] = frozenset(
            f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}" for family, host in hosts
        )
