"""Pictures in every form that callers have, as the encoder reads them."""

import base64
import io
import re
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

from fsr.client import InvalidRequestError
from fsr.client.media import image_messages, read_picture
from fsr_core.pictures import read_picture as as_encoder_reads
from fsr_core.pictures import to_rgb

SIZE = (13, 7)


@pytest.fixture
def image():
    """A picture of which no row, column, half or channel equals another."""
    values = np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def pixels(source):
    """What the encoder makes of a source."""
    return np.asarray(as_encoder_reads(read_picture(source)))


def test_bytes_of_every_kind_are_the_file(image, tmp_path):
    data = png(image)
    path = tmp_path / "möd 1.png"
    path.write_bytes(data)
    with path.open("rb") as opened, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(data)
        spooled.seek(0)
        uri = "data:image/png;base64," + base64.b64encode(data).decode()
        sources = [data, bytearray(data), memoryview(data), path, str(path), opened, io.BytesIO(data), spooled, uri]
        sources.append(uri.replace("data:image/png;base64", "DATA:image/png;charset=x;BASE64"))
        sources.append("data:image/png," + "".join(f"%{byte:02x}" for byte in data))
        assert [read_picture(source) for source in sources] == [data] * len(sources)


def test_one_source_is_one_picture_and_a_list_is_several(image):
    data = png(image)
    for one in (data, bytearray(data), image, np.asarray(image)):
        assert len(image_messages(one)) == len(image_messages([one])) == 1 and len(image_messages([one, data])) == 2
    assert len(image_messages(io.BytesIO(data))) == 1
    assert image_messages([]) == [] and len(image_messages(iter([data, data]))) == 2


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_pil_image_of_every_mode_shows_the_same(image, mode):
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    by_way = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode)
    given = image.convert("RGB" if mode in ("CMYK", "YCbCr", "HSV", "RGBX", "P", "1") else "RGBA")
    given = (given.convert(by_way) if by_way else given).convert(mode)
    assert given.mode == mode and np.array_equal(pixels(given), np.asarray(to_rgb(given)))


@pytest.mark.parametrize(
    ("mode", "values"),
    [("I;16", [0, 65535]), ("I;16B", [0, 65535]), ("I", [0, 255]), ("I", [0, 65535]), ("F", [0, 255])],
)
def test_pil_image_of_large_numbers_shows_the_same(mode, values):
    given = Image.new(mode, (2, 1))
    for x, value in enumerate(values):
        given.putpixel((x, 0), value)
    assert np.array_equal(pixels(given), np.asarray(to_rgb(given))) and pixels(given).max() == 255


def test_pil_image_of_a_turned_file_is_upright(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(image, exif=exif)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(pixels(opened), pixels(data)) and pixels(data).shape[:2] == SIZE
    assert opened.size == SIZE, "the caller's own image stays as it is"


def test_pil_image_with_a_transparent_colour_shows_the_same(image):
    colour = image.getpixel((0, 0))
    opened = Image.open(io.BytesIO(png(image, transparency=colour)))
    assert pixels(opened)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a,
        lambda a: a[::-1][::-1],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(">i4"),
        lambda a: a / 255,
        lambda a: (a / 255).astype(np.float32),
        lambda a: a.astype(np.uint16) * 257,
        lambda a: a.astype(">u2") * np.uint16(257),
        lambda a: np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
        torch.from_numpy,
    ],
)
def test_array_of_any_number_format_shows_the_same(image, make):
    array = np.array(image)
    assert np.array_equal(pixels(make(array)), array)


def test_array_with_one_or_two_channels_is_grey(image):
    grey = np.asarray(image.convert("L"))
    for array in (grey, grey[:, :, None], np.dstack([grey, np.full_like(grey, 255)]), grey.astype(np.uint16) * 257):
        assert np.array_equal(pixels(array), np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(pixels(grey > 99)[:, :, 0], np.where(grey > 99, 255, 0))
    assert pixels(np.zeros((1, 1), np.uint8)).shape == (1, 1, 3)


class Upload:
    async def read(self):
        return b""


class OnGpu:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def closed(file):
    file.close()
    return file


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "image: is empty; give a JPEG"),
        (io.BytesIO(), r"image: the open file is at its end; call seek\(0\)"),
        (io.StringIO("x"), r"image: the file is open as text; open it as bytes: open\(path, 'rb'\)"),
        (closed(io.BytesIO(b"x")), r"image: the open file cannot be read \(I/O operation on closed file"),
        (Upload(), r"image: Upload is read with await; pass what read\(\) gives"),
        ("data:image/png;base64", "image: the data URI has no comma; write data:image/png;base64"),
        ("data:image/png;base64,@@", "image: the data URI is no base64"),
        ("s3://bucket/scene.png", "image: URLs of s3:// are not read; give a path, an https URL"),
        ("file:///scene.png", "image: URLs of file:// are not read; give a path"),
        ("x" * 5000, "image: cannot read x{200} "),
        ("a\0b", r"image: cannot read a.b \(embedded null byte\)"),
        (np.zeros((3, 8, 8), np.uint8), r"image: an array of shape \[3, 8, 8\] .*: array\.transpose\(1, 2, 0\)"),
        (np.zeros((5, 8, 8, 3), np.uint8), r"shape \[5, 8, 8, 3\] .* a list\(array\), and .* Video\(list\(array\)\)"),
        (np.zeros((0, 8, 3), np.uint8), r"image: an array of shape \[0, 8, 3\] is no picture"),
        (np.float32(3), r"image: an array of shape \[\] is no picture"),
        (np.full((2, 2), 255.0), r"image: the array's float64 are 255.0..255.0, not 0..1; divide"),
        (np.full((2, 2), np.nan), r"image: the array's float64 are nan..nan"),
        (np.full((2, 2), -1), r"image: the array's int64 are -1..-1, not 0..255; scale it to uint8"),
        (np.full((2, 2), "x"), "image: an array of <U1 is no picture"),
        (OnGpu(), r"image: OnGpu gives no array \(can't convert cuda"),
        (Image.new("RGB", (0, 4)), "image: the PIL image has no pixels"),
        (Image.new("I", (1, 1), -1), r"image: its pixels of mode I are -1..-1; scale them to 0..255"),
        (closed(Image.new("RGB", (4, 4))), "image: the PIL image cannot be read"),
        (Image.open(io.BytesIO(png(Image.effect_noise((64, 64), 99))[:-900])), "image: the PIL image cannot be read"),
        (object(), "image: object is not a picture; give a path, a URL, a file's bytes, an open file, a PIL image or"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value)[:40] if isinstance(value, str) else "",
)
def test_wrong_picture_is_refused_with_the_remedy(source, says):
    with pytest.raises(InvalidRequestError, match=f"^{says}" if says.startswith("image") else says):
        image_messages(source)


def test_wrong_picture_among_several_is_named_by_its_number(image):
    with pytest.raises(InvalidRequestError, match=r"^images\[1\]: cannot read /no/such/picture"):
        image_messages([image, "/no/such/picture"])


def test_sdk_imports_neither_numpy_nor_pillow():
    """They are loaded by now here, so a fresh interpreter says it."""
    import subprocess

    code = "import sys, fsr.client; print({'numpy', 'PIL', 'av'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
