"""Files that cost more than their pixels tell are refused before a decoder reads them; common ones are not."""

import io
import time

import pytest
from PIL import Image

from fsr.common.errors import InvalidRequest
from fsr.encoder.images.decode import check_pixels, decode_image
from fsr.encoder.images.picture_cost import check_cost
from fsr.v1 import types_pb2
from helpers.benches import picture
from helpers.costly_files import chunk, encoded, jpeg_of_scans, png_with, segment, webp_with

COMMENTS = segment(0xFE, b"x") * 3
#: A comment in which a reader that takes it for scans sees the end of the picture.
HIDDEN_END = segment(0xFE, b"\xff\xd9")
HOSTILE = {
    "thousands of scans": (jpeg_of_scans(5000), "has 5000 scans, more than 100"),
    "one scan too many": (jpeg_of_scans(101), "has 101 scans"),
    "arithmetic coding": (jpeg_of_scans(300, marker=0xCA), "has 300 scans"),
    "scans of a sequential file": (jpeg_of_scans(300, marker=0xC2).replace(b"\xff\xc2", b"\xff\xc1"), None),
    "scans behind a hidden end": (jpeg_of_scans(300, between=HIDDEN_END), "has 300 scans"),
    "scans without an end": (jpeg_of_scans(300)[:-2], "has 300 scans"),
    "scans after a damaged restart": (jpeg_of_scans(300, between=b"\xff\x02\x00\x09"), "has 300 scans"),
    "padding": (b"\xff\xd8" + b"\xff" * 10**6, "bytes of tables"),
    "junk": (b"\xff\xd8\xff\xfe\x00\x02" + bytes(10**6), "bytes of tables"),
    "tables": (b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) * 2000 + encoded("JPEG")[2:], "bytes of tables"),
    "comments": (b"\xff\xd8" + segment(0xFE) * 10**4 + encoded("JPEG")[2:], "more than 8192 segments"),
    "comments between scans": (jpeg_of_scans(9, between=segment(0xFE) * 2000), "more than 8192 segments"),
    "empty chunks": (png_with(chunk(b"IDAT") * 10**4), "more than 8192 chunks"),
    "texts": (png_with(chunk(b"tEXt", b"a\0b") * 10**4), "more than 8192 chunks"),
    "chunks of a WebP": (webp_with(b"abcd\0\0\0\0" * 10**4), "more than 8192 chunks"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_file_when_it_costs_more_than_its_pixels_then_refused_at_once(name):
    data, reason = HOSTILE[name]
    began = time.thread_time()
    if reason is None:  # a decoder reads one scan of it
        check_cost(data)
    else:
        with pytest.raises(InvalidRequest, match=rf"^images\[0\]\.data: .*{reason}.*; save it"):
            check_pixels([types_pb2.Image(data=data)], 10**6, 10**6)
    assert time.thread_time() - began < 1


def progressive(size=(640, 480), **options):
    out = io.BytesIO()
    picture(size).save(out, "JPEG", progressive=True, quality=95, **options)
    return out.getvalue()


def with_comment(text):
    exif = Image.Exif()
    exif[0x9286] = text
    return exif


GOOD = {
    "progressive": progressive(),
    "progressive with restarts": progressive(restart_marker_blocks=1),
    "as many scans as are allowed": jpeg_of_scans(100),
    "progressive, and a film behind it": progressive() + b"\xff\xda" * 5000,
    "sequential, and a film behind it": encoded("JPEG", (640, 480)) + b"\xff\xda" * 5000,
    "a large colour profile": encoded("JPEG", icc_profile=b"\xff\xda" * 10**6),
    "a preview in the metadata": encoded("JPEG", exif=with_comment(b"\xff\xda" * 2000)),
    "comments": b"\xff\xd8" + COMMENTS + encoded("JPEG")[2:],
    "chunks of 8 KiB": encoded("PNG", (2000, 2000)),
}


@pytest.mark.parametrize("name", GOOD)
def test_file_when_it_is_common_then_it_is_decoded(name):
    assert decode_image(GOOD[name], "images[0].data", 10**8)[0].mode == "RGB"


def test_decode_when_its_time_is_over_then_it_stops_where_it_reads_on():
    """The file has 20 pieces of 64 KiB; two are read."""
    out = io.BytesIO()
    Image.effect_noise((1200, 1200), 100).save(out, "PNG", compress_level=0)
    checks = []

    def check(field):
        checks.append(field)
        if len(checks) > 12:  # the header takes some
            raise InvalidRequest(f"{field}: takes too long")

    with pytest.raises(InvalidRequest, match=r"^images\[0\]\.data: takes too long$"):
        decode_image(out.getvalue(), "images[0].data", 10**8, check)
    assert len(checks) == 13
