"""Small picture files that cost their reader far more than their size and their pixels tell."""

import io
import struct
import zlib

from PIL import Image


def encoded(kind, size=(8, 6), **options):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


def segment(marker, content=b""):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_of_scans(scans, side=64, marker=0xC2, between=b""):
    """A grey JPEG: a scan with every block's mean, then scans that say of runs of blocks that nothing changes."""
    header = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    header += segment(marker, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    for table, symbol in (
        (b"\x00", b"\0"),
        (b"\x10", b"\xe0"),
    ):  # one symbol each: no change; a run, its length follows
        header += segment(0xC4, table + bytes([1] + [0] * 15) + symbol)
    blocks = (side // 8) ** 2
    first = segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0x00])) + _bits("0" * blocks)
    runs = -(-blocks // 32767)
    one = segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + _bits(("0" + "1" * 14) * runs)
    return header + first + (between + one) * (scans - 1) + b"\xff\xd9"


def _bits(text):
    padded = text + "1" * (-len(text) % 8)
    content = bytes(int(padded[i : i + 8], 2) for i in range(0, len(padded), 8))
    return content.replace(b"\xff", b"\xff\0")


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(chunks):
    """A PNG of 8 x 6 with these bytes before its pixels."""
    data = encoded("PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + chunks + data[at:]


def webp_with(chunks):
    """A WebP of 8 x 6 of the extended format, with these chunks after its pixels."""
    data = encoded("WEBP")
    extended = b"VP8X" + struct.pack("<L", 10) + bytes([8, 0, 0, 0]) + bytes([7, 0, 0, 5, 0, 0])
    content = b"WEBP" + extended + data[12:] + chunks
    return b"RIFF" + struct.pack("<L", len(content)) + content
