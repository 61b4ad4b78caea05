"""What decoding a picture's file costs beyond what its pixels tell, counted in the file before a decoder reads it.

A progressive JPEG may pass over all of its pixels thousands of times, with fifty bytes a time, and Pillow reads the
segments of a JPEG and the chunks of a PNG one by one in Python. So a file is walked here first, which takes a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["check_cost"]

# Segments of a JPEG, chunks of a PNG or WebP. Pillow takes some 10 us for each. Common encoders write 8 KiB or more to
# one, so even the largest files have fewer.
_MAX_PARTS = 8192
_MAX_SCANS = 100  # passes over a JPEG's pixels. Encoders write about ten
_MAX_TABLES = 2**16  # bytes of tables, and of what is no segment, before a JPEG's first scan. Encoders write some 2 KiB

_SOI, _SOS, _EOI = 0xD8, 0xDA, 0xD9
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_METADATA = {*range(0xE0, 0xF0), 0xFE}
# A marker that a segment follows, or the start or end of a picture. Decoders pass over all others.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def check_cost(data: bytes) -> None:
    """Raises ValueError, with the remedy, for a JPEG, PNG or WebP that costs more than its size and pixels tell.

    Other files, and damaged ones, are for a decoder to refuse.
    """
    for beginning, check in _CHECKS.items():
        if data.startswith(beginning):
            check(data)


def _check_jpeg(data: bytes) -> None:
    tables, end, components, progressive = 0, 2, b"", False
    for marker, start, next_start in _segments(data, 2):
        if marker == _SOS:
            # One scan of all components is all that a decoder reads, unless the file is progressive.
            if progressive or data[start + 4 : start + 5] != components:
                _check_scans(data, start)
            return
        if marker in _FRAMES:
            components = data[start + 9 : start + 10]
            progressive |= marker in _PROGRESSIVE
        tables += start - end + (0 if marker in _METADATA else next_start - start)
        end = next_start
        if tables > _MAX_TABLES:
            break
    if max(tables, tables + len(data) - end) > _MAX_TABLES:
        raise ValueError(f"has more than {_MAX_TABLES} bytes of tables; save it again")


def _check_scans(data: bytes, start: int) -> None:
    """`start` is where the first scan begins. Behind the last one a file may hold other pictures, or a film."""
    stop = next((place for marker, place, _ in _segments(data, start) if marker == _EOI), len(data))
    # Not fewer than any decoder finds, however it reads what is damaged.
    scans = data.count(bytes([0xFF, _SOS]), start, stop)
    if scans > _MAX_SCANS:
        raise ValueError(f"has {scans} scans, more than {_MAX_SCANS}; save it with fewer")


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment from `position` on. Start and end of a picture are markers alone."""
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            return
        start, position = found.span()
        marker = data[start + 1]
        if marker not in (_SOI, _EOI):
            position += max(2, int.from_bytes(data[position : position + 2]))
        yield marker, start, position
    raise _too_many("segments")


def _check_png(data: bytes) -> None:
    position = 8
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data) or data[position + 4 : position + 8] == b"IEND":
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise _too_many("chunks")


def _check_webp(data: bytes) -> None:
    position = 12
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            return
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    raise _too_many("chunks")


def _too_many(parts: str) -> ValueError:
    return ValueError(f"has more than {_MAX_PARTS} {parts}; save it again")


_CHECKS: dict[bytes, Callable[[bytes], None]] = {
    b"\xff\xd8": _check_jpeg,
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"RIFF": _check_webp,
}
