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

    A name that cannot be resolved, or not within `timeout` seconds, keeps the addresses that it had: a DNS outage must
    neither empty a pool nor hold up the looks at its replicas.
    """

    def __init__(self, targets: Sequence[str], timeout: float) -> None:
        self._timeout = timeout
        self._known: dict[str, frozenset[str]] = {
            target: frozenset() if target.startswith(_DNS) else frozenset([target]) for target in targets
        }
        self._asking: dict[str, asyncio.Task[frozenset[str]]] = {}

    async def addresses(self) -> frozenset[str]:
        """All addresses now."""
        await asyncio.gather(*(self._resolve(target) for target in self._known if target.startswith(_DNS)))
        return frozenset().union(*self._known.values())

    async def _resolve(self, target: str) -> None:
        # A lookup occupies a thread until it ends, so a name that hangs is not looked up again beside it.
        asking = self._asking.pop(target, None) or asyncio.create_task(_lookup(target.removeprefix(_DNS)))
        done, _ = await asyncio.wait([asking], timeout=self._timeout)
        try:
            if not done:
                self._asking[target] = asking
                raise TimeoutError(f"no answer within {self._timeout:g} s")
            self._known[target] = asking.result()
        except (OSError, UnicodeError) as error:  # a name that no DNS could hold is the latter
            log.warning("name not resolved", target=target, reason=str(error), kept=len(self._known[target]))


async def _lookup(name: str) -> frozenset[str]:
    """Every address of host:port now."""
    host, _, port = name.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    hosts = {(family, str(where[0])) for family, _, _, _, where in found}
    return frozenset(f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}" for family, host in hosts)
