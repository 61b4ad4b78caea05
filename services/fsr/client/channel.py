"""The connection to a gateway, plain or TLS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from fsr.client.errors import InvalidRequestError
from fsr.common.addresses import host_of_target
from fsr.common.proxies import may_use_proxy
from fsr.common.transport import channel_options

__all__ = ["Tls", "open_channel"]

_KEEPALIVE_SECONDS = 20.0
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """Encrypts the connection; all files are PEM.

    `ca`: the authority to trust; None: those that gRPC ships. `cert` and `key`: the client's own certificate, if the
    gateway asks for one. `server_name`: the name in the gateway's certificate, if it differs from the address.
    """

    ca: PathLike | None = None
    cert: PathLike | None = None
    key: PathLike | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidRequestError("tls: cert and key belong together; give both, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidRequestError if a file cannot be read."""
        return grpc.ssl_channel_credentials(_read("ca", self.ca), _read("key", self.key), _read("cert", self.cert))


def _read(name: str, path: PathLike | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"tls: cannot read {name} {path} ({error.strerror}); check the path") from error


def open_channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """A channel that pings a silent gateway, so that a dead connection is noticed within about 40 s.

    An HTTP proxy of the environment is used only for hosts that are neither this machine nor named by `no_proxy`.
    Raises InvalidRequestError if the address is empty, a URL, or IPv6 without brackets.
    """
    if not address or address.startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise InvalidRequestError(f"gateway: {address!r} is no address; write host:port, such as 127.0.0.1:20050")
    try:
        options = channel_options(_KEEPALIVE_SECONDS, proxy=may_use_proxy(host_of_target(address)))
    except ValueError as error:
        raise InvalidRequestError(f"gateway: {error}") from error
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)
