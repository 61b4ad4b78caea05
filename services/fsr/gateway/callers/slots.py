"""Which request runs now and which waits: slots shared fairly between keys, and between the connections of a key.

A request takes a slot of the gateway, of its key and of its connection, each of which has a bound. If one of them is
full, it waits in a line. A slot that becomes free goes to the key that holds the fewest slots for its weight; between
equals, to the one whose turn it is by its weight (stride scheduling, Waldspurger and Weihl 1995); and likewise to a
connection of that key. If the line is full, the key with the most waiting requests for its weight loses its last one.
So neither a key nor a connection that sends many requests takes the others' slots or places in the line.

This is own code because semaphores and queues of the standard library serve in order of arrival alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["NoSlot", "Slots"]


class NoSlot(Exception):
    """There is no slot for a request. `reason` is the bound that it met: in_flight, key or connection."""

    def __init__(self, reason: str, in_flight: int) -> None:
        super().__init__(f"no slot: {reason}")
        self.reason, self.in_flight = reason, in_flight


@dataclass(kw_only=True)
class _Share:
    """What the gateway, a key or a connection has of the slots and of the line."""

    reason: str  # why a request gets no slot when this share is full
    most: int = 0  # requests in flight
    weight: float = 1.0
    in_flight: int = 0
    waiting: int = 0
    turn: float = 0.0  # a virtual time: between equals the earliest is served next
    now: float = 0.0  # the virtual time of those that share this one
    parts: dict[str, _Share] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return self.in_flight >= self.most

    def part(self, name: str, reason: str) -> _Share:
        """The share of this name in this one. A new one has its turn now."""
        if name not in self.parts:
            self.parts[name] = _Share(reason=reason, turn=self.now)
        return self.parts[name]

    def serve(self, part: _Share) -> None:
        """One more request of `part` runs."""
        self.now = max(self.now, part.turn)
        part.turn = self.now + 1 / part.weight


@dataclass(eq=False, kw_only=True)
class _Request:
    number: int  # in order of arrival
    names: tuple[str, str]  # of key and connection
    shares: tuple[_Share, _Share, _Share]  # of the gateway, the key and the connection
    turn: asyncio.Future[None]  # done when it runs, or has lost its place in the line
    running: bool = False

    @property
    def bound(self) -> _Share | None:
        """The share that has no slot for it."""
        return next((share for share in self.shares if share.full), None)

    def order(self) -> tuple[float, ...]:
        """The waiting request with the least of these is served next."""
        _, key, connection = self.shares
        return key.in_flight / key.weight, key.turn, connection.in_flight, connection.turn, self.number

    def excess(self) -> tuple[float, ...]:
        """The waiting request with the most of these loses its place in a line that is too long."""
        _, key, connection = self.shares
        return key.waiting / key.weight, connection.waiting, self.number


class Slots:
    """The slots of one gateway. All its methods belong to one event loop."""

    def __init__(self, most: int, most_waiting: int) -> None:
        self._all = _Share(reason="in_flight", most=most)
        self._most_waiting = most_waiting
        self._line: list[_Request] = []
        self._arrived = 0

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return self._all.full

    @asynccontextmanager
    async def slot(
        self, key: str, connection: str, *, most: tuple[int, int], weight: float, seconds: float
    ) -> AsyncIterator[None]:
        """Surrounds a request of this key and connection, which may have `most` requests in flight each.

        Waits at most `seconds` for a slot. Raises NoSlot.
        """
        request = self._request(key, connection, most, weight)
        try:
            if request.bound is None:
                self._run(request)
            else:
                await self._wait(request, seconds)
            yield
        finally:
            self._leave(request)

    def _request(self, key: str, connection: str, most: tuple[int, int], weight: float) -> _Request:
        of_key = self._all.part(key, "key")
        of_connection = of_key.part(connection, "connection")
        # They may have changed with the file of keys.
        of_key.most, of_connection.most, of_key.weight = *most, weight
        self._arrived += 1
        return _Request(
            number=self._arrived,
            names=(key, connection),
            shares=(self._all, of_key, of_connection),
            turn=asyncio.get_running_loop().create_future(),
        )

    def _run(self, request: _Request) -> None:
        whole, key, connection = request.shares
        whole.serve(key)
        key.serve(connection)
        for share in request.shares:
            share.in_flight += 1
        request.running = True

    async def _wait(self, request: _Request, seconds: float) -> None:
        self._line.append(request)
        for share in request.shares:
            share.waiting += 1
        if len(self._line) > self._most_waiting:
            self._leave_line(max(self._line, key=_Request.excess))
        await asyncio.wait({request.turn}, timeout=seconds)
        if not request.running:
            bound = request.bound or self._all
            raise NoSlot(bound.reason, bound.in_flight)

    def _leave_line(self, request: _Request) -> None:
        self._line.remove(request)
        for share in request.shares:
            share.waiting -= 1
        if not request.turn.done():
            request.turn.set_result(None)

    def _leave(self, request: _Request) -> None:
        """The request ends, or its caller waits no longer."""
        if request in self._line:
            self._leave_line(request)
        if request.running:
            for share in request.shares:
                share.in_flight -= 1
            self._serve_line()
        # Shares that hold nothing any more are dropped.
        whole, key, connection = request.shares
        for holder, part, name in zip((key, whole), (connection, key), reversed(request.names), strict=True):
            if not part.in_flight and not part.waiting and holder.parts.get(name) is part:
                del holder.parts[name]

    def _serve_line(self) -> None:
        """Gives free slots to those that wait."""
        while candidates := [request for request in self._line if request.bound is None]:
            following = min(candidates, key=_Request.order)
            self._run(following)
            self._leave_line(following)
