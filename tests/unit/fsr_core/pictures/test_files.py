"""Metadata change nothing but the orientation, whatever is wrong with them; damaged pixels are an error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from fsr_core.pictures import PictureFile, read_picture
from helpers.png import before_pixels, chunk, riff_chunk, segment

PICTURE = Image.fromarray(np.add.outer(3 * np.arange(40), 2 * np.arange(64)).astype(np.uint8)).convert("RGB")
KINDS = ("JPEG", "PNG", "WEBP")
JUNK, MEGABYTES = bytes(range(256)) * 4, zlib.compress(bytes(3_000_000))


def file_of(kind, **options):
    out = io.BytesIO()
    PICTURE.save(
        out, kind, **({"quality": 90} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}), **options
    )
    return out.getvalue()


DAMAGED = r"is truncated or damaged|is no readable JPEG, PNG or WebP file"


def broken_crc(kind, body):
    return chunk(kind, body)[:-1] + b"!"


def orientation(value, kind=3, order="<", count=1):
    """EXIF whose first directory has two tags: the orientation is the second."""
    number = {1: "B", 3: "H", 4: "I"}.get(kind, "I")
    body = struct.pack(order + number, value) if isinstance(value, int) else value
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    first = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0"
    second = struct.pack(order + "HHI", 0x0112, kind, count) + body.ljust(4, b"\0")
    return head + struct.pack(order + "H", 2) + first + second + bytes(4)


def xmp(value):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()


#: EXIF that says no orientation, or none that can be read.
BAD_EXIF = {
    "junk": b"junkjunkjunk",
    "nothing": b"",
    "head alone": b"II*\0\x08\0\0\0",
    "no such place": b"II*\0" + struct.pack("<I", 2**31),
    "more tags than bytes": b"II*\0\x08\0\0\0\xff\xff" + b"\x0f\x01\x02\x00" + b"\xff" * 8,
    "a text": orientation(b"6\0", kind=2, count=2),
    "two numbers": orientation(b"\6\0\6\0", count=2),
    "a fraction far away": orientation(2**31, kind=5),
    "unknown type": orientation(6, kind=77),
    "out of range": orientation(9),
    "zero": orientation(0),
    "a float": orientation(struct.pack("<f", 6), kind=11),
}
PNG_BLOCKS = {
    "large colour profile": chunk(b"iCCP", b"p\0\0" + MEGABYTES),
    "damaged colour profile": chunk(b"iCCP", b"p\0\0" + JUNK),
    "colour profile of another compression": chunk(b"iCCP", b"p\0\7" + MEGABYTES),
    "empty colour profile": chunk(b"iCCP", b""),
    "large compressed text": chunk(b"zTXt", b"workflow\0\0" + MEGABYTES),
    "damaged compressed text": chunk(b"zTXt", b"workflow\0\0" + JUNK),
    "text of another compression": chunk(b"zTXt", b"workflow\0\7" + JUNK),
    "large international text": chunk(b"iTXt", b"prompt\0\1\0de\0Frage\0" + MEGABYTES),
    "damaged international text": chunk(b"iTXt", b"prompt\0\1\0" + JUNK),
    "short international text": chunk(b"iTXt", b"prompt"),
    "many texts": b"".join(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(900_000))) for i in range(80)),
    "large plain text": chunk(b"tEXt", b"parameters\0" + b"x" * 2_000_000),
    "damaged XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + JUNK),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MEGABYTES),
    "damaged raw profile": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nno digits"),
    "wrong checksum": broken_crc(b"tEXt", b"Comment\0hello"),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short resolution": chunk(b"pHYs", b"\0\0"),
    "short rendering intent": chunk(b"sRGB", b""),
    "short chromaticities": chunk(b"cHRM", b"\0" * 5),
    "short animation": chunk(b"acTL", b"\0"),
    "animation of no frames": chunk(b"acTL", bytes(8)),
    "private block": chunk(b"prVt", JUNK),
}
JPEG_BLOCKS = {
    "damaged colour profile": segment(0xE2, b"ICC_PROFILE\0" + JUNK),
    "half a colour profile": segment(0xE2, b"ICC_PROFILE\0\1\4" + bytes(60_000)) * 2,
    "large colour profile": b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 60]) + bytes(65_000)) for i in range(1, 61)
    ),
    "damaged Photoshop block": segment(0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\x03\xed" + b"\0\0" + b"\0\0\0\1\0"),
    "short Photoshop block": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03"),
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "damaged list of pictures": segment(0xE2, b"MPF\0" + JUNK),
    "list of pictures far away": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0" + b"\xff" * 8),
    "FlashPix": segment(0xE2, b"FPXR\0" + JUNK),
    "long comment": segment(0xFE, b"x" * 65_000) * 9,
    "comment that is no text": segment(0xFE, JUNK),
    "damaged XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + JUNK),
    "unknown applications": b"".join(segment(marker, JUNK) for marker in range(0xE0, 0xF0)),
    "padding": b"\xff" * 9,
}
WEBP_BLOCKS = {
    "damaged colour profile": riff_chunk(b"ICCP", JUNK),
    "damaged XMP": riff_chunk(b"XMP ", JUNK),
    "unknown block": riff_chunk(b"abcd", JUNK),
    "odd block": riff_chunk(b"abcd", b"x"),
}
BLOCKS = (
    [("PNG", name, block) for name, block in PNG_BLOCKS.items()]
    + [("PNG", f"EXIF: {name}", chunk(b"eXIf", exif)) for name, exif in BAD_EXIF.items()]
    + [("JPEG", name, block) for name, block in JPEG_BLOCKS.items()]
    + [("JPEG", f"EXIF: {name}", segment(0xE1, b"Exif\0\0" + exif)) for name, exif in BAD_EXIF.items()]
    + [("WEBP", name, block) for name, block in WEBP_BLOCKS.items()]
    + [("WEBP", f"EXIF: {name}", riff_chunk(b"EXIF", exif)) for name, exif in BAD_EXIF.items()]
)


@pytest.mark.parametrize(("kind", "block"), [(k, b) for k, _, b in BLOCKS], ids=[f"{k}, {n}" for k, n, _ in BLOCKS])
def test_read_picture_when_metadata_are_damaged_then_the_pixels_are_the_same(kind, block):
    clean = file_of(kind)
    assert read_picture(before_pixels(clean, block)).tobytes() == read_picture(clean).tobytes()


@pytest.mark.parametrize("block", PNG_BLOCKS.values(), ids=PNG_BLOCKS)
def test_read_picture_when_metadata_after_the_pixels_are_damaged_then_they_are_the_same(block):
    clean = file_of("PNG")
    assert read_picture(clean[:-12] + block + clean[-12:]).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("source", ["EXIF", "big-endian EXIF", "long EXIF", "XMP"])
def test_read_picture_with_an_orientation_is_turned(kind, number, source):
    """As `ImageOps.exif_transpose` turns it, which transformers uses."""
    exif = {"EXIF": {}, "big-endian EXIF": {"order": ">"}, "long EXIF": {"kind": 4}}.get(source)
    body, name = (xmp(number), "XMP") if exif is None else (orientation(number, **exif), "EXIF")
    block = {
        ("PNG", "EXIF"): lambda: chunk(b"eXIf", body),
        ("PNG", "XMP"): lambda: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + body),
        ("JPEG", "EXIF"): lambda: segment(0xE1, b"Exif\0\0" + body),
        ("JPEG", "XMP"): lambda: segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + body),
        ("WEBP", "EXIF"): lambda: riff_chunk(b"EXIF", body),
        ("WEBP", "XMP"): lambda: riff_chunk(b"XMP ", body),
    }[kind, name]()
    upright = Image.Exif()
    upright[0x0112] = number
    whole = read_picture(file_of(kind))
    whole.info["exif"] = upright.tobytes()
    assert read_picture(before_pixels(file_of(kind), block)).tobytes() == ImageOps.exif_transpose(whole).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_read_picture_equals_exif_transpose_of_what_pillow_wrote(kind):
    """With a colour profile too, so that WebP has its extended form."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = file_of(kind, exif=exif, icc_profile=b"a profile", xmp=xmp(3))
    assert read_picture(file).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(file))).tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_read_picture_with_the_exif_of_imagemagick_is_turned(compressed):
    exif = b"Exif\0\0" + orientation(6)
    text = f"\nexif\n{len(exif):8}\n{exif[:20].hex()}\n{exif[20:].hex()}\n".encode()
    name = b"Raw profile type exif\0"
    block = chunk(b"zTXt", name + b"\0" + zlib.compress(text)) if compressed else chunk(b"tEXt", name + text)
    assert read_picture(before_pixels(file_of("PNG"), block)).size == (40, 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_read_picture_when_pixels_are_missing_then_refused(kind, share):
    out = io.BytesIO()
    Image.effect_noise((64, 40), 90).convert("RGB").save(out, kind)
    file = out.getvalue()
    with pytest.raises(ValueError, match=DAMAGED):
        read_picture(file[: int(share * len(file))])


@pytest.mark.parametrize("kind", KINDS)
def test_read_picture_when_the_first_pixels_are_other_bytes_then_refused(kind):
    file = bytearray(file_of(kind))
    at = {"PNG": bytes(file).find(b"IDAT") + 4, "JPEG": bytes(file).find(b"\xff\xc0") + 4, "WEBP": 20}[kind]
    file[at : at + 12] = b"\xff" * 12
    with pytest.raises(ValueError, match=DAMAGED):
        read_picture(bytes(file))


def test_picture_file_of_an_animation_says_so():
    more = {"save_all": True, "append_images": [PICTURE.transpose(Image.Transpose.ROTATE_180)]}
    assert {kind: PictureFile(file_of(kind, **more)).frames for kind in ("PNG", "WEBP")} == {"PNG": 2, "WEBP": 2}
    assert PictureFile(file_of("MPO", **more)).frames == 1
