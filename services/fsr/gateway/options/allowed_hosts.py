"""URLs that the gateway may fetch: of hosts that the operator names, and only in the one plain form of a URL.

What two parsers could read differently is refused: user names, hosts as numbers, zone ids, percent signs in hosts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urljoin, urlsplit

__all__ = ["AllowedHosts", "BadUrl", "RemoteUrl"]

_PORTS = {"http": 80, "https": 443}
_MAX_CHARACTERS = 8192
_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without blanks, control characters and backslash
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*({_LABEL})")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a host that ends so is an IPv4 address for some resolvers
_RULE = re.compile(r"(\*\.)?(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")


class BadUrl(ValueError):
    """The URL is none that may be fetched; the message has the fault and the remedy."""


@dataclass(frozen=True, kw_only=True)
class RemoteUrl:
    """An http or https URL, taken apart. `host` is in lower case; an IPv6 address has no brackets."""

    scheme: str
    host: str
    port: int
    target: str  # path and query

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadUrl."""
        if len(text) > _MAX_CHARACTERS:
            raise BadUrl(f"is a URL of more than {_MAX_CHARACTERS} characters; use a shorter one")
        if not _PRINTABLE.fullmatch(text):
            raise BadUrl("has blanks or characters that a URL cannot have; percent-encode them")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise BadUrl(f"is no URL ({error}); write https://host/path") from error
        if parts.scheme not in _PORTS:
            raise BadUrl("is neither a data URI nor an http(s) URL; write data:image/png;base64,... or https://...")
        if "@" in parts.netloc:
            raise BadUrl("has a user name in its URL; leave it out")
        host = _plain_host(parts.hostname or "")
        written = f"[{host}]" if ":" in host else host
        if parts.netloc.lower() != (written if port is None else f"{written}:{port}"):
            raise BadUrl("has a host or port in an unusual form; write https://host/path")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme=parts.scheme, host=host, port=_PORTS[parts.scheme] if port is None else port, target=target)

    def redirected(self, location: str) -> Self:
        """The URL that a response sends the client to. Raises BadUrl."""
        try:
            return self.parse(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))
        except ValueError as error:
            raise BadUrl(f"is redirected to a URL that {error}") from error

    @property
    def authority(self) -> str:
        """Host, and the port if it is not the scheme's own, as in the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def _plain_host(host: str) -> str:
    """The host in its one plain form. Raises BadUrl."""
    try:
        return str(ipaddress.IPv6Address(host) if ":" in host and "%" not in host else ipaddress.IPv4Address(host))
    except ValueError:
        name = _NAME.fullmatch(host)
    if not name or len(host) > 253 or _NUMBER.fullmatch(name[1]):
        raise BadUrl("has a host that is neither a name nor a plain IP address; write https://host/path")
    return host


class AllowedHosts:
    """The operator's list. Each entry is host, host:port, *.domain, *.domain:port, or * for every host.

    Without a port, 80 and 443 are meant.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises ValueError, which names the entry and the remedy."""
        self._hosts: set[tuple[str, int]] = set()
        self._domains: set[tuple[str, int]] = set()  # each with the dot before it; empty for every host
        for entry in entries:
            wildcard, host, ports = _rule(entry)
            (self._domains if wildcard else self._hosts).update((host, port) for port in ports)

    def __bool__(self) -> bool:
        return bool(self._hosts or self._domains)

    def names(self, host: str, port: int) -> bool:
        """Whether an entry names this host in full."""
        return (host, port) in self._hosts

    def admit(self, host: str, port: int) -> bool:
        """Whether an entry names this host, in full or by its domain."""
        return self.names(host, port) or any(
            host.endswith(domain) and port == domain_port for domain, domain_port in self._domains
        )


def _rule(entry: str) -> tuple[bool, str, tuple[int, ...]]:
    """Whether an entry stands for many hosts, its host or domain, and its ports."""
    if entry == "*":
        return True, "", tuple(_PORTS.values())
    match = _RULE.fullmatch(entry.lower())
    try:
        if not match or not 0 < int(match[3] or 80) < 65536:
            raise ValueError(entry)
        host = _plain_host(match[2].strip("[]"))
    except ValueError:
        raise ValueError(f"{entry!r} is no host; write host, host:port, *.domain or *") from None
    ports = (int(match[3]),) if match[3] else tuple(_PORTS.values())
    return bool(match[1]), f".{host}" if match[1] else host, ports
