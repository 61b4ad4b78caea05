"""Ports of this machine: whether a service can listen there, and who can reach it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

__all__ = ["is_loopback", "join", "listen_error", "listening_address", "open_socket"]


def listen_error(host: str, port: int) -> str | None:
    """None if a service can listen on this TCP port, else the reason.

    It binds the port and lets it go again. Whether a connection succeeds tells less: a port that an outgoing connection
    holds refuses connections, and cannot be bound.
    """
    errors: list[OSError] = []
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:  # no such name
        return error.strerror or str(error)
    for family, _, _, _, address in found:
        try:
            socket.create_server(address[:2], family=family).close()
        except OSError as error:
            errors.append(error)
    in_use = [error for error in errors if error.errno == errno.EADDRINUSE]
    # A name may stand for addresses that this machine does not have, such as ::1 where IPv6 is off.
    decisive = in_use or (errors if len(errors) == len(found) else [])
    return os.strerror(decisive[0].errno or 0) if decisive else None


def open_socket(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A socket that listens on a port, 0 for a free one. `::` also takes connections over IPv4. Raises OSError."""
    family, address = listening_address(host, port)
    both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=both)


def listening_address(host: str, port: int) -> tuple[int, tuple]:
    """Family and address of a socket that listens on a host: of a name, the first one of IPv4. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a service that listens on `host`."""
    host = host.strip("[]").lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def join(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
