"""PNG files of every depth and colour type, which Pillow cannot write, and blocks put into files."""

import struct
import zlib

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def chunk(kind, body):
    """A block of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values, depth, colour_type, palette=b"", transparent=b"", more=b""):
    """The file of `values` [H, W, channels] with `depth` bits each. `more`: blocks before the pixels."""
    height, width, channels = values.shape
    assert channels == CHANNELS[colour_type]
    bits = (values.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)  # 0: no filter
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    blocks = [chunk(b"IHDR", head), more]
    blocks += [chunk(b"PLTE", palette)] if palette else []
    blocks += [chunk(b"tRNS", transparent)] if transparent else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*blocks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")])


def before_pixels(file, blocks):
    """A PNG, JPEG or WebP file with `blocks` in the usual place of metadata."""
    if file.startswith(b"\x89PNG"):
        at = file.index(b"IDAT") - 4
        return file[:at] + blocks + file[at:]
    if file.startswith(b"\xff\xd8"):
        return file[:2] + blocks + file[2:]
    file += blocks
    return file[:4] + struct.pack("<I", len(file) - 8) + file[8:]


def segment(marker, body):
    """A block of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def riff_chunk(kind, body):
    """A block of a WebP file."""
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
