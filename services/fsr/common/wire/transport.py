"""What all our channels and servers share: gRPC options and the names of metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "DECODERS",
    "ENCODERS",
    "MAX_STREAMS",
    "MESSAGE_BYTES",
    "REPLICAS",
    "REQUEST_ID",
    "RETRY_AFTER",
    "channel_options",
    "server_options",
]

MESSAGE_BYTES = 64 * 2**20  # of the largest message that our servers and channels accept
MAX_STREAMS = 100  # calls at a time on one connection to a server, unless it says otherwise
_UNCOMPRESSED = 1  # gRPC's bit set of compression algorithms, with identity alone
REPLICAS = "fsr-replicas"  # metadata of a caller who wants the addresses below; any value
# Trailing metadata of a call, after a failure too.
RETRY_AFTER = "retry-after-ms"  # the time after which to try again
REQUEST_ID = "fsr-request-id"
ENCODERS, DECODERS = "fsr-encoders", "fsr-decoders"  # addresses that the request was sent to, comma-separated


def channel_options(
    keepalive_seconds: float = 0.0, *, proxy: bool = False, tls: bool = False, reconnect_seconds: float = 2.0
) -> list[tuple[str, Any]]:
    """Options of a channel. With `keepalive_seconds`, the connection ends when the peer answers no ping for so long.

    `reconnect_seconds` is the longest pause after a failed attempt to connect. With `tls` an attempt has more time:
    its handshake takes more ways there and back, and computing on both sides. Without `proxy` it uses none, whatever
    `http_proxy` says: services reach each other directly.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.enable_http_proxy", int(proxy)),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 200),
        # The time that an attempt may take, in spite of its name.
        ("grpc.min_reconnect_backoff_ms", 5000 if tls else 1000),
        ("grpc.max_reconnect_backoff_ms", int(reconnect_seconds * 1000)),
    ]
    if keepalive_seconds:
        options += [
            ("grpc.keepalive_time_ms", int(keepalive_seconds * 1000)),
            ("grpc.keepalive_timeout_ms", int(keepalive_seconds * 1000)),
            ("grpc.http2.ping_timeout_ms", int(keepalive_seconds * 1000)),  # else a minute, in spite of the line above
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options


def server_options(max_message_bytes: int = MESSAGE_BYTES, max_streams: int = MAX_STREAMS) -> Sequence[tuple[str, Any]]:
    """Options of a server: our message limit, pings as often as our channels send them, one process for a port.

    Compressed messages are UNIMPLEMENTED: a small one would take three times its unpacked size before any code of ours
    sees it, and pictures and features do not shrink. A bound on the streams of a connection is what ends a flood of
    calls that are reset at once: without it, gRPC drops the calls of others.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
