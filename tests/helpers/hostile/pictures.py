"""Pictures that are dear to decode, or that try to be."""

import io
import struct
import zlib

from PIL import Image

from helpers.costly_files import chunk, segment

__all__ = ["dear_pictures", "large_picture"]


def large_picture(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    """An empty PNG."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    packer = zlib.compressobj(1)
    row = bytes(1 + width * channels * depth // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def dear_pictures(small: bytes, mib: int) -> dict[str, bytes]:
    """By name. `small`: an ordinary PNG, which some of them are made from. `mib`: what metadata unpack to."""
    out = io.BytesIO()
    Image.open(io.BytesIO(small)).convert("RGB").save(out, "JPEG")
    jpeg, bomb = out.getvalue(), zlib.compress(bytes(mib * 2**20))
    looping = (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08"  # its directory leads to itself
    )
    return {
        "text that unpacks": small[:33] + chunk(b"zTXt", b"k\0\0" + bomb) + small[33:],
        "profile that unpacks": small[:33] + chunk(b"iCCP", b"k\0\0" + bomb) + small[33:],
        "100,000 chunks": small[:33] + chunk(b"tEXt", b"k\0v") * 100_000 + small[33:],
        "100,000 comments": jpeg[:2] + segment(0xFE, b"x") * 100_000 + jpeg[2:],
        "EXIF that leads to itself": jpeg[:2] + segment(0xE1, looping) + jpeg[2:],
        "header alone, of 4 Gpixel": large_picture(8, 8)[:16]
        + struct.pack(">II", 65_000, 65_000)
        + large_picture(8, 8)[24:],
        "bytes behind the end": small + bytes(10 * 2**20),
    }
