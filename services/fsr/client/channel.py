"""The connection to a gateway, plain or TLS."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from fsr.client.errors import InvalidRequestError
from fsr.common.network.addresses import host_of_target, is_this_machine
from fsr.common.network.proxies import may_use_proxy
from fsr.common.wire.transport import channel_options
from fsr.v1 import gateway_pb2_grpc

__all__ = ["Connection", "Tls", "is_forked", "is_plain_text"]

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

    def files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The contents of `ca`, `key` and `cert`. Raises InvalidRequestError if one cannot be read."""
        return _read("ca", self.ca), _read("key", self.key), _read("cert", self.cert)


def _read(name: str, path: PathLike | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"tls: cannot read {name} {path} ({error.strerror}); check the path") from error


def is_plain_text(address: str, tls: Tls | None) -> bool:
    """Whether what is sent to a gateway leaves this machine without encryption. Raises ValueError for no address."""
    host = host_of_target(address)
    return tls is None and host != "" and not is_this_machine(host)


class Connection:
    """The channel to a gateway. The first call opens it, in its event loop: a client may be made before there is one.
    It pings a silent gateway: a dead connection is noticed within about 40 s.

    An HTTP proxy of the environment is used only for hosts that are neither this machine nor named by `no_proxy`.

    Raises InvalidRequestError if the address is empty, a URL, or IPv6 without brackets, or if a file of `tls` cannot be
    read.
    """

    def __init__(self, address: str, tls: Tls | None) -> None:
        if not address or address.startswith(("http://", "https://", "grpc://", "grpcs://")):
            raise InvalidRequestError(f"gateway: {address!r} is no address; write host:port, such as 127.0.0.1:20050")
        self._address = address
        self._tls_files = None if tls is None else tls.files()
        try:
            proxy = may_use_proxy(host_of_target(address))
        except ValueError as error:
            raise InvalidRequestError(f"gateway: {error}") from error
        self._options = channel_options(_KEEPALIVE_SECONDS, proxy=proxy, tls=tls is not None)
        if tls is not None and tls.server_name:
            self._options.append(("grpc.ssl_target_name_override", tls.server_name))
        self._opened: _Opened | None = None
        self.closed = False

    def stub(self) -> gateway_pb2_grpc.GatewayServiceStub:
        """The gateway's methods. Raises RuntimeError if they cannot be called from here; the message says why."""
        self.check()
        loop = asyncio.get_running_loop()
        if self._opened is not None and self._opened.loop is not loop:
            if not self._opened.loop.is_closed():
                raise RuntimeError("AsyncClient: another event loop uses it; make a client for each loop")
            self._opened = None  # as after `asyncio.run`
        if self._opened is None:
            self._opened = _Opened(loop, self._channel())
        return self._opened.stub

    def check(self) -> None:
        """Raises RuntimeError if the client is closed, or if gRPC cannot work in this process."""
        if self.closed:
            raise RuntimeError("client: is closed; make another one")
        if is_forked():
            remedy = "start processes with multiprocessing.get_context('spawn'), or fork before the first call"
            raise RuntimeError(f"client: gRPC hangs in a process forked from one that had called a gateway; {remedy}")

    async def close(self) -> None:
        """May be called again. In a forked process it leaves the connection to the parent."""
        self.closed = True
        opened = self._opened
        if opened is not None and opened.loop is asyncio.get_running_loop() and not is_forked():
            await opened.channel.close(None)

    def _channel(self) -> grpc.aio.Channel:
        global _process
        _process = os.getpid()
        if self._tls_files is None:
            return grpc.aio.insecure_channel(self._address, options=self._options)
        credentials = grpc.ssl_channel_credentials(*self._tls_files)
        return grpc.aio.secure_channel(self._address, credentials, options=self._options)


class _Opened:
    """A channel, and the event loop that it belongs to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: grpc.aio.Channel) -> None:
        self.loop, self.channel = loop, channel
        self.stub = gateway_pb2_grpc.GatewayServiceStub(channel)


_process: int | None = None  # the process that opened the first channel


def is_forked() -> bool:
    """Whether this process was forked from one with a channel. A fork does not copy gRPC's threads: a call would wait
    for good."""
    return _process not in (None, os.getpid())
