"""Addresses as people write them, IPv4 and IPv6 alike: `host:port` and `[::1]:port`, hosts with or without brackets."""

from __future__ import annotations

import ipaddress
import re

from fsr.common.network.ports import is_loopback

__all__ = ["bare_host", "host_of_target", "is_this_machine", "split_host_port"]

# https://github.com/grpc/grpc/blob/master/doc/naming.md
_LOCAL = ("unix:", "unix-abstract:", "vsock:")
_RESOLVER = re.compile(r"^(dns:(//[^/]*/)?|ipv4:|ipv6:)")


def bare_host(text: str) -> str:
    """A host without the brackets of IPv6, and a name in the ASCII of DNS (`xn--...`).

    Raises ValueError, which says what to write, for what is no host.
    """
    host = text.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError(f"{text!r} has brackets, but no IPv6 address in them; write [::1]")
    if not host:
        raise ValueError("is empty; write 127.0.0.1 for this machine alone, 0.0.0.0 or :: for every interface")
    if not any(character in host for character in "/[] ") and (":" not in host or _is_ipv6(host)):
        try:
            return host if host.isascii() else host.encode("idna").decode()
        except UnicodeError:
            pass
    raise ValueError(f"{text!r} is no host; write a name or an IP address alone, without a port")


def split_host_port(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of an address. Raises ValueError, which says what to write."""
    host, _, port = text.strip().rpartition(":")
    if ":" in host and not host.startswith("[") and "/" not in host:
        raise ValueError(f"{text!r} is not clear; write an IPv6 address in brackets, such as [::1]:{port}")
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address; write host:port, or [::1]:port for IPv6")
    return bare_host(host), int(port)


def host_of_target(target: str) -> str:
    """The host of an address in any form that gRPC resolves, which takes port 443 where there is none.

    It is without brackets, and empty for a socket of this machine. Raises ValueError, which says what to write.
    """
    if target.startswith(_LOCAL):
        return ""
    first = _RESOLVER.sub("", target).split(",")[0]
    has_port = ":" in first and not first.endswith("]")
    return split_host_port(first)[0] if has_port else bare_host(first)


def is_this_machine(host: str) -> bool:
    """Whether a connection to a host, without brackets, stays on this machine."""
    return is_loopback(host) or host in ("0.0.0.0", "::")


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
