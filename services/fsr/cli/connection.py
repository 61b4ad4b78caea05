"""The options of every command that talks to a gateway, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fsr.client.aio import AsyncClient
from fsr.client.channel import Tls
from fsr.client.sync import Client

__all__ = ["Connection", "connects"]


@dataclass(frozen=True)
class Connection:
    """Where the gateway is and how to talk to it."""

    gateway: str = "127.0.0.1:50050"
    api_key: str | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def _options(self) -> dict[str, Any]:
        wanted = self.tls or any((self.ca, self.cert, self.key, self.server_name))
        tls = Tls(self.ca, self.cert, self.key, self.server_name) if wanted else None
        return {"tls": tls, "api_key": self.api_key}

    def open(self) -> Client:
        """Raises ClientError."""
        return Client(self.gateway, **self._options())

    def open_async(self) -> AsyncClient:
        """Raises ClientError."""
        return AsyncClient(self.gateway, **self._options())


# Flag, type, and help of each field of Connection.
_OPTIONS: dict[str, Any] = {
    "gateway": Annotated[str, typer.Option(help="address of the gateway", envvar="FSR_GATEWAY")],
    "api_key": Annotated[str | None, typer.Option(help="key to show; better by environment", envvar="FSR_API_KEY")],
    "tls": Annotated[bool, typer.Option("--tls", help="encrypt; any option below does too", envvar="FSR_TLS")],
    "ca": Annotated[Path | None, typer.Option(help="PEM of the authority to trust", envvar="FSR_TLS_CA")],
    "cert": Annotated[Path | None, typer.Option(help="PEM certificate of this client", envvar="FSR_TLS_CERT")],
    "key": Annotated[Path | None, typer.Option(help="PEM key of that certificate", envvar="FSR_TLS_KEY")],
    "server_name": Annotated[
        str | None, typer.Option(help="name in the gateway's certificate", envvar="FSR_TLS_SERVER_NAME")
    ],
}


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `Connection` in place of its `connection` parameter."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        connection = Connection(**{name: given.pop(name) for name in _OPTIONS})
        command(connection=connection, **given)

    own = inspect.signature(command, eval_str=True).parameters
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(Connection, name), annotation=kind)
        for name, kind in _OPTIONS.items()
    ]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in own.items() if name != "connection"]
    wrapped.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
    return wrapped
