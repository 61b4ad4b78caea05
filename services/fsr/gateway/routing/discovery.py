"""Where replicas are: a fixed list, or all addresses that a DNS name has now.

Our own code because gRPC's Python API does not hand out the addresses that its resolver finds, and the gateway chooses
a replica for each request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import structlog

from fsr.common.network.addresses import split_host_port
from fsr.common.network.ports import join

__all__ = ["Discovery"]

log = structlog.get_logger()
_DNS = "dns:///"


class Discovery:
    """Resolves targets: host:port stands for itself, dns:///name:port for all addresses of the name.

    If a name cannot be resolved, or not within `timeout` seconds, it keeps its last addresses: a DNS outage must
    neither empty a pool nor delay the probes of its replicas.
    """

    def __init__(self, targets: Sequence[str], timeout: float) -> None:
        self._timeout = timeout
        self._addresses: dict[str, frozenset[str]] = {
            target: frozenset() if target.startswith(_DNS) else frozenset([target]) for target in targets
        }
        self._lookups: dict[str, asyncio.Task[frozenset[str]]] = {}  # those that have not ended in time

    async def addresses(self) -> frozenset[str]:
        """All addresses now."""
        await asyncio.gather(*(self._resolve(target) for target in self._addresses if target.startswith(_DNS)))
        return frozenset().union(*self._addresses.values())

    def host_of(self, address: str) -> str:
        """The host by which an address is listed: its certificate has this name. Of an address that is not listed, as
        an encoder announces it, that of the first target."""
        listed = [target for target, addresses in self._addresses.items() if address in addresses]
        target = (listed or [*self._addresses, address])[0]
        return split_host_port(target.removeprefix(_DNS))[0]

    async def _resolve(self, target: str) -> None:
        # A lookup occupies a thread until it ends, so there is no second one for a name that hangs.
        lookup = self._lookups.pop(target, None) or asyncio.create_task(_lookup(target.removeprefix(_DNS)))
        done, _ = await asyncio.wait([lookup], timeout=self._timeout)
        try:
            if not done:
                self._lookups[target] = lookup
                raise TimeoutError(f"no answer within {self._timeout:g} s")
            self._addresses[target] = lookup.result()
        except (OSError, UnicodeError) as error:  # UnicodeError: the name is too long for DNS, or has an empty part
            log.warning("name not resolved", target=target, reason=str(error), kept=len(self._addresses[target]))


async def _lookup(name: str) -> frozenset[str]:
    """All addresses of host:port now."""
    host, port = split_host_port(name)
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return frozenset(join(str(address[0]), port) for *_, address in entries)
