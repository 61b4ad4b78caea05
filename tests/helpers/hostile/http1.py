"""HTTP below the level of an HTTP client."""

import json
import random
import socket
import time
from collections import Counter

from helpers.hostile.mutations import broken_bytes

__all__ = ["broken_http", "idle", "unfinished_http", "unread_http"]


def broken_http(address: str, count: int) -> Counter[str]:
    """Sends requests whose bytes are broken, each on a connection of its own, and ends it; how often which status
    came."""
    chance, codes = random.Random(11), Counter()
    host, _, port = address.rpartition(":")
    for _ in range(count):
        body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}).encode()
        path = chance.choice(("/v1/chat/completions", "/v1/compress", "/v1/models", "/"))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        _, data = broken_bytes(head.encode() + body, chance)
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                received = connection.recv(65536)
            except ConnectionError:
                received = b""
        codes[_code(received)] += 1
    return codes


def idle(addresses: list[str], count: int, hold: float) -> int:
    """Opens so many connections to each, and says nothing for so many seconds; how many were taken."""
    connections = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            connections += [socket.create_connection((host, int(port)), timeout=5) for _ in range(count)]
        except OSError:
            continue  # it takes no more
    time.sleep(hold)
    for connection in connections:
        connection.close()
    return len(connections)


def unfinished_http(address: str, connections: int, mib: int, key: str | None, hold: float) -> Counter[str]:
    """On each of so many connections sends a body but for its last byte, and holds it; how often which status came."""
    opened, codes = [], Counter()
    for _ in range(connections):
        connection = _connected(address, "/v1/chat/completions", mib * 2**20, key)
        connection.settimeout(2)
        try:
            for _ in range(mib - 1):
                connection.sendall(b" " * 2**20)
            connection.sendall(b" " * (2**20 - 1))
        except (ConnectionError, TimeoutError):
            pass
        opened.append(connection)
    time.sleep(hold)
    for connection in opened:
        codes[_status(connection, 0.1)] += 1
        connection.close()
    return codes


def unread_http(address: str, readers: int, body: bytes, key: str | None, seconds: float) -> int:
    """So many streams that nobody reads; how many of their connections the other side has ended after so long."""
    opened = []
    for _ in range(readers):
        connection = _connected(address, "/v1/chat/completions", len(body), key, receive_buffer=4096)
        connection.sendall(body)
        opened.append(connection)
    time.sleep(seconds)
    ended = sum(_is_ended(connection) for connection in opened)
    for connection in opened:
        connection.close()
    return ended


def _connected(address: str, path: str, length: int, key: str | None, receive_buffer: int = 0) -> socket.socket:
    """A connection that has sent a head."""
    host, _, port = address.rpartition(":")
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", f"Content-Length: {length}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def _status(connection: socket.socket, seconds: float) -> str:
    """Of the response, if it comes within so many seconds."""
    connection.settimeout(seconds)
    try:
        received = connection.recv(100)
    except TimeoutError:
        return "open"
    except ConnectionError:
        return "closed"
    return _code(received)


def _code(received: bytes) -> str:
    return received.split(b" ", 2)[1].decode() if received.startswith(b"HTTP/1.1 ") else "closed"


def _is_ended(connection: socket.socket) -> bool:
    """Reads what has come. A connection that was aborted gives its last bytes, and then an error or its end."""
    connection.settimeout(1)
    try:
        while connection.recv(2**20):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True
