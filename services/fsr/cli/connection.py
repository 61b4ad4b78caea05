"""The options of every command that talks to a gateway, declared once."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fsr.client.aio import DEFAULT_ADDRESS, PLAIN_KEY, AsyncClient
from fsr.client.channel import Tls, is_plain_text
from fsr.client.sync import Client

__all__ = ["Connection", "connects"]

_LISTS = ("ipv4:", "ipv6:")  # forms of gRPC in which commas are a part of the address


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The gateway's address, or several with commas between, and how to talk to it."""

    gateway: str = DEFAULT_ADDRESS
    api_key: str | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    insecure: bool = False

    def open(self) -> Client:
        """Raises ClientError."""
        client = Client(self._addresses(), tls=self._tls(), api_key=self.api_key, insecure=True)
        self._warn()
        return client

    def open_async(self) -> AsyncClient:
        """Raises ClientError."""
        client = AsyncClient(self._addresses(), tls=self._tls(), api_key=self.api_key, insecure=True)
        self._warn()
        return client

    def _addresses(self) -> list[str]:
        if self.gateway.startswith(_LISTS):
            return [self.gateway]
        return [address.strip() for address in self.gateway.split(",")]

    def _warn(self) -> None:
        """The SDK's own warning would name its arguments, and the place in this code."""
        plain = [address for address in self._addresses() if is_plain_text(address, self._tls())]
        if self.api_key and not self.insecure and plain:
            message = PLAIN_KEY.format(address=plain[0], remedy="--tls, or --insecure")
            print(f"warning: --{message.replace('_', '-', 1)}", file=sys.stderr)

    def _tls(self) -> Tls | None:
        if self.tls or any((self.ca, self.cert, self.key, self.server_name)):
            return Tls(self.ca, self.cert, self.key, self.server_name)
        return None


# Flag, type, and help of each field of Connection.
_OPTIONS: dict[str, Any] = {
    "gateway": Annotated[
        str,
        typer.Option(
            help="address of the gateway; several, comma-separated: the next one goes on when one fails",
            envvar="FSR_GATEWAY",
        ),
    ],
    "api_key": Annotated[
        str | None, typer.Option(help="API key to send; safer in the environment", envvar="FSR_API_KEY")
    ],
    "tls": Annotated[bool, typer.Option("--tls", help="encrypt; implied by the options below", envvar="FSR_TLS")],
    "ca": Annotated[Path | None, typer.Option(help="PEM of the authority to trust", envvar="FSR_TLS_CA")],
    "cert": Annotated[Path | None, typer.Option(help="PEM certificate of this client", envvar="FSR_TLS_CERT")],
    "key": Annotated[Path | None, typer.Option(help="PEM key of that certificate", envvar="FSR_TLS_KEY")],
    "server_name": Annotated[
        str | None, typer.Option(help="name in the gateway's certificate", envvar="FSR_TLS_SERVER_NAME")
    ],
    "insecure": Annotated[
        bool, typer.Option("--insecure", help="no warning about a key in plain text", envvar="FSR_INSECURE")
    ],
}


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Connection` in place of its `connection` parameter."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        connection = Connection(**{name: arguments.pop(name) for name in _OPTIONS})
        command(connection=connection, **arguments)

    parameters = inspect.signature(command, eval_str=True).parameters.values()
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    of_command = [parameter.replace(kind=keyword_only) for parameter in parameters if parameter.name != "connection"]
    of_connection = [
        inspect.Parameter(name, keyword_only, default=getattr(Connection, name), annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    wrapped.__signature__ = inspect.Signature([*of_command, *of_connection])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*of_command, *of_connection)}
    return wrapped
