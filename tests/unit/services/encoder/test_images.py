"""Image files to pixels: what is decoded how, and what is refused."""

import io

import pytest
from PIL import Image

from fsr.common.errors import InvalidRequest
from fsr.encoder.images.decode import check_pixels, decode_image
from fsr.v1 import types_pb2


def encoded(kind, size=(8, 6), **options):
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_decode_image_of_each_format(kind):
    image, _ = decode_image(encoded(kind), "images[0].data", 100)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_decode_image_when_a_jpeg_holds_two_then_the_first():
    data = encoded("MPO", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
    image, _ = decode_image(data, "images[0].data", 100)
    assert data.startswith(b"\xff\xd8") and image.size == (8, 6)
    assert image.getpixel((0, 0))[0] > 200 > image.getpixel((0, 0))[2]


def test_decode_image_when_it_has_an_orientation_then_it_is_turned():
    """As `load_image` of transformers does."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    left_half = Image.new("RGB", (8, 6), "white")
    left_half.paste("black", (0, 0, 4, 6))
    left_half.save(out, "PNG", exif=exif)
    image, _ = decode_image(out.getvalue(), "images[0].data", 100)
    assert image.size == (6, 8) and [image.getpixel((3, y)) for y in (0, 7)] == [(0, 0, 0), (255, 255, 255)]


def test_decode_image_when_it_is_transparent_then_white():
    """As the image processors of transformers do."""
    drawn = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    drawn.putpixel((3, 3), (0, 0, 0, 255))
    drawn.putpixel((4, 3), (0, 0, 0, 51))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        out = io.BytesIO()
        drawn.save(out, kind, **options)
        image, _ = decode_image(out.getvalue(), "images[0].data", 100)
        assert [image.getpixel((x, 3)) for x in (2, 3, 4)] == [(255,) * 3, (0,) * 3, (204,) * 3]
    out = io.BytesIO()
    drawn.convert("P").save(out, "PNG", transparency=drawn.convert("P").getpixel((0, 0)))
    image, _ = decode_image(out.getvalue(), "images[0].data", 100)
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "no readable"),
        (encoded("BMP"), "no readable"),
        (encoded("PNG", (200, 200))[:-60], "truncated"),
        (encoded("PNG", (11, 10)), "11 x 10 is more than 100 pixels"),
        (encoded("PNG", (201, 1)), "201 x 1 is more than 200 times as long as wide"),
        (encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")]), "animated"),
    ],
)
def test_decode_image_when_wrong_then_the_field_is_named(data, reason):
    with pytest.raises(InvalidRequest, match=r"images\[0\]\.data: .*" + reason):
        decode_image(data, "images[0].data", 100 if "pixels" in reason else 10**6)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([{"data": encoded("PNG")}] * 3, "images: 144 pixels together exceed 100"),
        ([{"data": encoded("PNG")}, {"frames": [encoded("PNG")] * 2}], "images: 144 pixels together exceed 100"),
        ([{"frames": [encoded("PNG"), encoded("PNG", (9, 9))]}], r"images\[0\]\.frames\[1\]: 9 x 9 is more than 60"),
        ([{"data": encoded("PNG")}, {"data": b"x", "frames": [b"x"]}], r"images\[1\]: has both data and frames"),
        ([{}], r"images\[0\]\.data: is empty"),
    ],
)
def test_check_pixels_when_too_many_then_refused_before_decoding(images, reason, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    messages = [types_pb2.Image(**image) for image in images]
    with pytest.raises(InvalidRequest, match=reason):
        check_pixels(messages, 60, 100)
    check_pixels([types_pb2.Image(frames=[encoded("PNG")] * 2)], 60, 100)


def test_check_pixels_when_a_picture_has_passed_then_its_header_is_not_read_again():
    """All other rules hold: how many pixels a request may have, and that an image is a picture or a video."""
    read = [types_pb2.Image(data=encoded("PNG")), types_pb2.Image(data=encoded("PNG", (4, 5)))]
    unreadable = [types_pb2.Image(data=b"no header"), read[1]]
    known = check_pixels(read, 60, 100)
    assert check_pixels(unreadable, 60, 100, [known[0], None]) == known == [[(8, 6)], [(4, 5)]]
    with pytest.raises(InvalidRequest, match="68 pixels together exceed 67"):
        check_pixels(unreadable, 60, 67, known)
    with pytest.raises(InvalidRequest, match=r"images\[0\]: has both data and frames"):
        check_pixels([types_pb2.Image(data=b"a", frames=[b"b"])], 60, 100, known[:1])
