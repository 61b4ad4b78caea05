"""The gateways that a client knows: it calls one, and another one once that one fails."""

from __future__ import annotations

from collections.abc import Sequence

from fsr.client.channel import Connection, Tls, is_plain_text
from fsr.client.errors import InvalidRequestError

__all__ = ["Gateways"]


class Gateways:
    """One connection for each address. All calls go to the same gateway until it fails, so that a client's follow-up
    questions share what that gateway knows.

    Raises InvalidRequestError as `Connection` does, and if there is no address.
    """

    def __init__(self, addresses: str | Sequence[str], tls: Tls | None) -> None:
        every = [addresses] if isinstance(addresses, str) else list(addresses)
        if not every:
            raise InvalidRequestError("gateway: there is no address; write host:port, such as 127.0.0.1:20050")
        self._connections = [Connection(address, tls) for address in every]
        #: the first address that leaves this machine without encryption
        self.in_plain_text = next((address for address in every if is_plain_text(address, tls)), None)
        self._current = 0

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def current(self) -> Connection:
        """The one to call now."""
        return self._connections[self._current]

    def failed(self, connection: Connection) -> None:
        """From now on calls go to the next gateway, if they have not done so since another call failed."""
        if connection is self.current:
            self._current = (self._current + 1) % len(self)

    @property
    def closed(self) -> bool:
        return self.current.closed

    def check(self) -> None:
        """Raises RuntimeError if no call can be made from this process; see `Connection.check`."""
        self.current.check()

    async def close(self) -> None:
        """May be called again."""
        for connection in self._connections:
            await connection.close()
