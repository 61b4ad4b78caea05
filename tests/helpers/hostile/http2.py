"""gRPC below the level of a gRPC client: connections that do what no client does. Own frames by the package `h2`."""

import gzip
import random
import select
import socket
import struct
import time
from collections import defaultdict
from urllib.parse import unquote

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from helpers.hostile.callers import RPCS, Outcome

__all__ = ["INCOMPLETE", "Connection", "framed", "odd_calls", "resets", "unfinished", "unread"]

# Odd calls whose message never comes to its end. gRPC's server leaves such a stream open until the caller closes it.
INCOMPLETE = {"no message", "half of a head", "cut", "less than it says"}
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class Connection:
    """One HTTP/2 connection. `window`: how many bytes of a response it takes before it must ask for more."""

    def __init__(self, address: str, *, window: int | None = None, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        host, _, port = address.rpartition(":")
        self._socket.connect((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._h2 = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        self._h2.initiate_connection()
        if window is not None:
            self._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._headers: dict[int, dict[str, str]] = defaultdict(dict)
        self._data: dict[int, int] = defaultdict(int)
        self._ended: set[int] = set()
        self.alive = True
        self.flush()

    def flush(self) -> None:
        """Sends what is ready. Reads meanwhile: two sides that only write would wait for each other."""
        data = memoryview(self._h2.data_to_send())
        while data and self.alive:
            readable, writable, _ = select.select([self._socket], [self._socket], [], 10)
            try:
                if readable:
                    self._receive()
                if writable:
                    data = data[self._socket.send(data[:65536]) :]
                elif not readable:
                    self.alive = False  # it takes nothing for ten seconds
            except OSError:
                self.alive = False

    def receive(self, seconds: float) -> None:
        """What comes within so many seconds, the first of it."""
        if self.alive and select.select([self._socket], [], [], seconds)[0]:
            try:
                self._receive()
            except OSError:
                self.alive = False
            self.flush()

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            self.alive = False
            return
        try:
            for event in self._h2.receive_data(data):
                self._note(event)
        except ProtocolError:
            self.alive = False

    def _note(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            texts = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            self._headers[event.stream_id] |= texts
        elif isinstance(event, DataReceived):
            self._data[event.stream_id] += len(event.data)
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamReset):
            self._headers[event.stream_id]["reset"] = str(event.error_code)
            self._ended.add(event.stream_id)
        elif isinstance(event, StreamEnded):
            self._ended.add(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            self.alive = False

    def open(self, rpc: str, key: str | None = None, *headers: tuple[str, str]) -> int | None:
        """A new stream; None once the connection takes none."""
        limit = time.monotonic() + 10
        while self._h2.open_outbound_streams >= self._h2.remote_settings.max_concurrent_streams:
            self.receive(0.1)
            if not self.alive or time.monotonic() > limit:
                return None
        stream = self._h2.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", RPCS.get(rpc, rpc)), (":authority", "hostile")]
        common = [("content-type", "application/grpc"), ("te", "trailers")]
        keys = [("authorization", f"Bearer {key}")] if key else []
        self._h2.send_headers(stream, [*pseudo, *common, *keys, *headers])
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False, seconds: float = 30.0) -> bool:
        """Sends as fast as the other side allows; whether it has taken all within so many seconds."""
        view, limit = memoryview(data), time.monotonic() + seconds
        while view and self.alive and stream not in self._ended:
            size = min(len(view), self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, 65536)
            if size > 0:
                self._h2.send_data(stream, bytes(view[:size]))
                view = view[size:]
                self.flush()
            elif time.monotonic() > limit:
                return False
            else:
                self.receive(0.05)
        if not view and end and self.alive and stream not in self._ended:
            self._h2.end_stream(stream)
            self.flush()
        return not view

    def reset(self, stream: int) -> None:
        if stream not in self._ended:
            self._h2.reset_stream(stream, 8)  # CANCEL

    def outcome(self, stream: int, what: str = "", seconds: float = 60.0) -> Outcome:
        """Waits for the end of the stream. The code is CLOSED if the connection ends before, OPEN if nothing does."""
        began = time.monotonic()
        while self.alive and stream not in self._ended and time.monotonic() < began + seconds:
            self.receive(0.2)
        trailers, took = self._headers[stream], time.monotonic() - began
        if "grpc-status" in trailers:
            code = _NAMES.get(int(trailers["grpc-status"]), trailers["grpc-status"])
        elif stream in self._ended:
            code = f"RESET {trailers['reset']}" if "reset" in trailers else f"HTTP {trailers.get(':status')}"
        else:
            code = "OPEN" if self.alive else "CLOSED"
        details = unquote(trailers.get("grpc-message", ""))
        return Outcome(what=what, code=code, details=details, trailers=dict(trailers), seconds=took)

    def received(self, stream: int) -> int:
        """Bytes of its response so far."""
        return self._data[stream]

    def close(self) -> None:
        self._socket.close()


def framed(message: bytes, *, compressed: bool = False, length: int | None = None) -> bytes:
    """A message as gRPC frames it; `length`: what the frame says, if not the truth."""
    body = gzip.compress(message) if compressed else message
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


def resets(address: str, count: int, *, body: bytes = b"", key: str | None = None) -> int:
    """Opens and resets so many streams as fast as it can; with `body`, after a whole request. How many connections it
    took."""
    connections, left = 0, count
    while left and connections < 100:
        connection, connections = Connection(address), connections + 1
        while left and connection.alive:
            for _ in range(min(50, left)):
                stream = connection.open("Generate", key)
                if stream is None:
                    break
                if body:
                    connection.send(stream, framed(body), end=True)
                if not connection.alive:
                    break
                connection.reset(stream)
                left -= 1
            connection.flush()
        connection.close()
    return connections


def unfinished(address: str, connections: int, mib: int, *, key: str | None = None, hold: float = 1.0) -> list[Outcome]:
    """On each of so many connections sends a message but for its last byte, and holds it for so many seconds."""
    message = framed(b"\x12\0" * (mib * 2**19))[:-1]
    opened = []
    for _ in range(connections):
        connection = Connection(address)
        stream = connection.open("Generate", key)
        connection.send(stream, message, seconds=5)
        opened.append((connection, stream))
    time.sleep(hold)
    outcomes = [connection.outcome(stream, "unfinished", 0.1) for connection, stream in opened]
    for connection, _ in opened:
        connection.close()
    return outcomes


def unread(address: str, readers: int, body: bytes, *, key: str | None, seconds: float, each: int = 8) -> list[Outcome]:
    """So many requests, some on each connection, whose answers nobody reads; how each has ended after so long."""
    opened = []
    for first in range(0, readers, each):
        connection = Connection(address, window=0, receive_buffer=4096)
        for _ in range(min(each, readers - first)):
            stream = connection.open("Generate", key, ("grpc-timeout", "1000S"))
            connection.send(stream, framed(body), end=True)
            opened.append((connection, stream))
    end = time.monotonic() + seconds
    outcomes = [c.outcome(s, "unread", max(0.05, end - time.monotonic())) for c, s in opened]
    for connection in {id(c): c for c, _ in opened}.values():
        connection.close()
    return outcomes


def odd_calls(address: str, count: int, seed: int, body: bytes, key: str | None) -> list[Outcome]:
    """Calls that no gRPC client makes: frames that lie, encodings that do not exist, wrong headers. All of them end."""
    chance, connection, outcomes = random.Random(seed), None, []
    for _ in range(count):
        if connection is None or not connection.alive:
            connection = Connection(address)
        what, rpc, headers, pieces = _odd_call(body, chance)
        try:
            stream = connection.open(rpc, key, *headers)
            if stream is None:
                outcomes.append(Outcome(what=what, code="CLOSED"))
                continue
            for number, piece in enumerate(pieces):
                connection.send(stream, piece, end=number == len(pieces) - 1)
            outcomes.append(connection.outcome(stream, what, 0.2 if what in INCOMPLETE else 20))
        except ProtocolError as error:  # it has closed meanwhile
            outcomes.append(Outcome(what=f"{what} ({error})", code="CLOSED"))
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return outcomes


def _odd_call(body: bytes, chance: random.Random) -> tuple[str, str, list[tuple[str, str]], list[bytes]]:
    """What it is, its rpc, more headers, and the pieces that are sent; the last one ends the stream."""
    good, zipped = framed(body), framed(body, compressed=True)
    gzipped = [("grpc-encoding", "gzip")]
    at, noise = chance.randrange(len(good)), chance.randbytes(chance.choice((1, 10, 5000)))
    ways: list[tuple[str, list[tuple[str, str]], list[bytes]]] = [
        ("no message", [], [b""]),
        ("half of a head", [], [good[:3]]),
        ("cut", [], [good[:at]]),
        ("more than it says", [], [framed(body, length=max(0, len(body) - 7))]),
        ("less than it says", [], [framed(body, length=len(body) + 7)]),
        ("says 4 GiB", [], [framed(body, length=2**32 - 1)]),
        ("two messages", [], [good + good]),
        ("noise behind", [], [good + noise]),
        ("noise alone", [], [noise]),
        ("byte by byte", [], [*(bytes([byte]) for byte in good[:50]), good[50:]]),
        ("compressed by nothing", [], [b"\x01" + good[1:]]),
        ("gzip that is none", gzipped, [b"\x01" + good[1:]]),
        ("gzip that is cut", gzipped, [framed(body) if len(zipped) < 60 else _reframed(zipped[5:-40])]),
        ("gzip of noise", gzipped, [framed(noise, compressed=True)]),
        ("an unknown encoding", [("grpc-encoding", "x" * chance.choice((1, 300)))], [zipped]),
        (
            "a deadline of words",
            [("grpc-timeout", chance.choice(("soon", "-1S", "1", "S", "99999999999S", "")))],
            [good],
        ),
        ("a deadline that has passed", [("grpc-timeout", chance.choice(("0n", "1n", "0S")))], [good]),
        ("another type", [("content-type", chance.choice(("text/plain", "application/grpc+json", "")))], [good]),
        ("metadata of 7 KiB", [("x-long", "v" * 7000)], [good]),
        ("metadata of 40 KiB", [(f"x-{number}", "v" * 4000) for number in range(10)], [good]),
        ("200 names", [(f"x-{number}", "v") for number in range(200)], [good]),
        ("binary that is none", [("x-bin", chance.choice(("%%%", "=", "a", "ä")))], [good]),
        ("names of gRPC's own", [("grpc-status", "0"), ("grpc-message", "x"), ("grpc-accept-encoding", "x")], [good]),
        ("other keys", [("authorization", chance.choice(("Bearer", "Basic eDp4", "Bearer " + "k" * 3000)))], [good]),
    ]
    what, headers, pieces = chance.choice(ways)
    rpc = "Generate"
    if chance.random() < 0.1:
        names = ("Missing", "Generate/", "generate", "", "%00", "../Generate", "Compress", "ListModels")
        rpc = f"/fsr.v1.GatewayService/{chance.choice(names)}"
        what = f"{rpc} with {what}"
    return what, rpc, headers, pieces


def _reframed(data: bytes) -> bytes:
    return struct.pack(">BI", 1, len(data)) + data
