"""The blocks of a picture file: those that the pixels need, and where the metadata say how to turn the picture.

Pillow reads all metadata that it knows, and refuses a file if any of them is damaged or large: a colour profile, a
text, EXIF. The pixels have nothing to do with that. So all other blocks are left out before Pillow gets the file.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

__all__ = ["Blocks", "split"]

_MOST_BYTES = 2**20  # of EXIF or XMP; what is longer is not read

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_XMP, _PNG_EXIF = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"  # texts by these names
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # decoders pass over all else between segments
_JPEG_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
_WEBP_METADATA = 0x20 | 0x08 | 0x04  # flags of VP8X: colour profile, EXIF, XMP


@dataclass(frozen=True)
class Blocks:
    """A file in parts.

    pixels     the file with only the blocks that its pixels need
    exif, xmp  the metadata by these names, empty if there are none
    frames     of an animated PNG; for other files Pillow tells
    """

    pixels: bytes
    exif: bytes = b""
    xmp: bytes = b""
    frames: int = 1


def split(data: bytes) -> Blocks:
    """The parts of a JPEG, PNG or WebP file. What is damaged is left to Pillow.

    Raises ValueError if the file is of another format.
    """
    if data.startswith(_PNG_SIGNATURE):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    raise ValueError("is no readable JPEG, PNG or WebP file")


def _png(data: bytes) -> Blocks:
    view, exif, xmp, frames, at = memoryview(data), b"", b"", 1, 8
    kept: list[bytes | memoryview] = [_PNG_SIGNATURE]
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body, end = view[at + 8 : at + 8 + length], at + 12 + length
        if kind in _PNG_PIXELS or not kind.isalpha():
            kept.append(view[at:end])
        elif kind == b"eXIf":
            exif = bytes(body[:_MOST_BYTES])
        elif kind == b"acTL":
            frames = max(1, int.from_bytes(body[:4]))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            name = bytes(body[:32])
            if name.startswith(_PNG_XMP):
                xmp = _png_text(kind, bytes(body))
            elif name.startswith(_PNG_EXIF):
                exif = exif or _hex_lines(_png_text(kind, bytes(body)))
        if kind == b"IEND":
            break
        at = end
    return Blocks(b"".join(kept), exif, xmp, frames)


def _png_text(kind: bytes, body: bytes) -> bytes:
    """The text of a text block: plain, compressed, or either after two names of its language."""
    text = body.partition(b"\0")[2]
    compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]
    if not compressed:
        return text[:_MOST_BYTES]
    try:
        return zlib.decompressobj().decompress(text, _MOST_BYTES)
    except zlib.error:
        return b""


def _hex_lines(text: bytes) -> bytes:
    """The bytes that ImageMagick writes as hexadecimal digits, after lines with their name and their number."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _jpeg(data: bytes) -> Blocks:
    view, exif, xmp, at = memoryview(data), b"", b"", 2
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    while found := _JPEG_MARKER.search(data, at):
        at, marker = found.start(), data[found.start() + 1]
        if marker == 0xDA:  # the first scan: pixels up to the end of the file
            kept.append(view[at:])
            break
        length = int.from_bytes(data[at + 2 : at + 4])
        body, end = view[at + 4 : at + 2 + length], at + 2 + max(2, length)
        if marker in (0xD8, 0xD9):  # start and end of a picture have no body
            end = at + 2
            kept.append(view[at:end])
        elif not _is_metadata(marker, body):
            kept.append(view[at:end])
        elif marker == 0xE1 and body[:6] == _JPEG_EXIF:
            exif = (exif + bytes(body[6:]))[:_MOST_BYTES]
        elif marker == 0xE1 and body[: len(_JPEG_XMP)] == _JPEG_XMP:
            xmp = bytes(body[len(_JPEG_XMP) :])
        at = end
    return Blocks(b"".join(kept), exif, xmp)


def _is_metadata(marker: int, body: memoryview) -> bool:
    """Whether a segment is a comment or belongs to an application. Two of the latter name the colour space."""
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        return False
    jfif = marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14
    adobe = marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12
    return not (jfif or adobe)


def _webp(data: bytes) -> Blocks:
    view, exif, xmp, size, at = memoryview(data), b"", b"", 4, 12
    kept: list[bytes | memoryview] = []
    stop = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= stop:
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body, end = view[at + 8 : at + 8 + length], at + 8 + length + length % 2
        if kind in _WEBP_PIXELS:
            block: bytes | memoryview = view[at:end]
            if kind == b"VP8X" and body:
                block = b"".join((view[at : at + 8], bytes([body[0] & ~_WEBP_METADATA]), body[1:]))
            kept.append(block)
            size += end - at  # as the block says: if its end is missing, the decoder must know
        elif kind == b"EXIF":
            exif = bytes(body[:_MOST_BYTES])
        elif kind == b"XMP ":
            xmp = bytes(body[:_MOST_BYTES])
        at = end
    return Blocks(b"".join((b"RIFF", min(size, 2**32 - 1).to_bytes(4, "little"), b"WEBP", *kept)), exif, xmp)
