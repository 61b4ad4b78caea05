"""Connections to public addresses alone, whatever a host's name resolves to.

A name is resolved once for each connection: the addresses that were checked are those that are connected to, so a
second answer of DNS cannot lead elsewhere (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpcore2
import structlog

from fsr.gateway.options.allowed_hosts import AllowedHosts

__all__ = ["IpAddress", "IpNetwork", "NotPublic", "PublicNetwork", "is_public"]

log = structlog.get_logger()

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_CONNECT_SECONDS = 3.0  # for one address, so that one without an answer leaves time for the next
_MAX_ADDRESSES = 8  # that are tried
# https://www.iana.org/assignments/iana-ipv6-special-registry; outside of 2000::/3 nothing is public: neither IPv4 in
# IPv6 (::ffff:0:0/96), nor NAT64 (64:ff9b::/96, 64:ff9b:1::/48), which may lead to a private IPv4 address.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "224.0.0.0/3",  # multicast and reserved
        "2001::/23",  # Teredo, which has an IPv4 address in it, and other special uses
        "2001:db8::/32",
        "2002::/16",  # 6to4, likewise
        "3fff::/20",
    )
]


class NotPublic(Exception):
    """The host has an address that may not be connected to."""


def is_public(address: IpAddress) -> bool:
    """Whether anybody on the internet could reach this address: not private, loopback, link-local or special."""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """The network for httpcore's client."""

    def __init__(self, hosts: AllowedHosts, networks: Iterable[IpNetwork], resolve: Resolve | None = None) -> None:
        """Addresses of `networks` are allowed too, for hosts that `hosts` names in full.

        `resolve` gives the IP addresses of a host and port; by default the system's resolver.
        """
        self._hosts, self._networks = hosts, list(networks)
        # Threads of our own: names that hang must not hold up the lookups of replicas.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="image-hosts")
        self._resolve = resolve or self._system_resolve
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises NotPublic if any address of the host is forbidden, and httpcore's ConnectError or ConnectTimeout."""
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in (await self._checked_addresses(host, port))[:_MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(address, port, timeout=timeout or _CONNECT_SECONDS)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _checked_addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name for DNS
            raise httpcore2.ConnectError(str(error)) from error
        named = self._hosts.names(host, port)
        for text in addresses:
            address = ipaddress.ip_address(text)
            if not (is_public(address) or (named and any(address in network for network in self._networks))):
                log.warning("image host refused", host=host, address=text)
                raise NotPublic(host)
        return addresses

    async def _system_resolve(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        entries = await loop.run_in_executor(self._threads, _lookup, host, port)
        return list(dict.fromkeys(str(address[0]) for *_, address in entries))


def _lookup(host: str, port: int) -> list[tuple]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
