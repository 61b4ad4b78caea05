"""A bad network between two processes of a test."""

import asyncio
import random
from contextlib import asynccontextmanager

_READ_BYTES = 65_536


class CutConnections:
    """Relays connections to `target`, and cuts the share `share` of them at each read, in either direction.

    After `most` cuts the network is good. How often a connection is read depends on how busy the machine is, so a
    client that gives up after some cuts in a row needs this bound.
    """

    def __init__(self, target: str, share: float, seed: int, most: int | None = None) -> None:
        self._host, _, port = target.rpartition(":")
        self._port, self._share, self._most, self._random = int(port), share, most, random.Random(seed)
        self._relays, self._pumps = set(), set()
        self.cut = 0  # connections
        self.address = ""

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._relays)
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _relay(self, reader, writer):
        self._relays.add(task := asyncio.current_task())
        task.add_done_callback(self._relays.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        for source, sink, other in ((reader, far_writer, writer), (far_reader, writer, far_writer)):
            pump = asyncio.create_task(self._pump(source, sink, other))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source, sink, other):
        try:
            while data := await source.read(_READ_BYTES):
                if (self._most is None or self.cut < self._most) and self._random.random() < self._share:
                    self.cut += 1
                    other.transport.abort()
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort() if self._share else sink.close()
