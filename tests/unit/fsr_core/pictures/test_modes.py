"""A picture of any mode or depth shows the same as in RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from fsr_core.pictures import read_picture, to_rgb
from helpers.png import CHANNELS, png

RAMP = np.add.outer(3 * np.arange(40), 2 * np.arange(64)).astype(np.uint8)  # grey, 0..243
GREY = Image.fromarray(RAMP)
RGB = Image.merge("RGB", (GREY, GREY.transpose(Image.Transpose.FLIP_LEFT_RIGHT), GREY.point(lambda v: v // 2)))


def in_mode(mode):
    """The grey or coloured picture in this mode, and what it is in RGB."""
    if mode == "1":
        white = GREY.point(lambda v: 255 * (v > 100))
        return white.convert("1"), white.convert("RGB")
    if mode.startswith("I;16"):
        wide = Image.new(mode, GREY.size)
        wide.frombytes((257 * RAMP.astype(">u2" if mode == "I;16B" else "<u2")).tobytes())
        return wide, GREY.convert("RGB")
    if mode in ("La", "PA"):
        return GREY.convert({"La": "LA", "PA": "P"}[mode]).convert(mode), GREY.convert("RGB")
    if mode == "RGBa":
        return RGB.convert("RGBA").convert(mode), RGB
    if mode in ("L", "LA", "P", "I", "F"):
        return GREY.convert(mode), GREY.convert("RGB")
    return RGB.convert(mode), RGB


def difference(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()


@pytest.mark.parametrize("mode", Image.MODES)
def test_to_rgb_of_every_mode_shows_the_same(mode):
    image, want = in_mode(mode)
    got = to_rgb(image)
    assert (image.mode, got.mode) == (mode, "RGB")
    assert difference(got, want) <= {"YCbCr": 3, "LAB": 16, "HSV": 8}.get(mode, 0)  # these round


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_to_rgb_when_transparent_then_on_white(mode):
    black = Image.new("LA", (3, 1), (0, 255))
    black.putalpha(Image.frombytes("L", (3, 1), bytes([0, 51, 255])))
    image = {"La": lambda: black.convert("La"), "PA": lambda: black.convert("P").convert("PA")}.get(
        mode, lambda: black.convert("RGBA").convert(mode)
    )()
    if mode == "PA":
        image.putalpha(black.getchannel("A"))
    assert [to_rgb(image).getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (204,) * 3, (0,) * 3]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (2, 2), 255.5), "F are 255.5..255.5; scale them to 0..255"),
        (Image.new("F", (2, 2), float("nan")), "F are nan"),
        (Image.new("I", (2, 2), -1), "I are -1..-1"),
        (Image.new("I", (2, 2), 65536), "I are 65536..65536"),
        (Image.new("RGB", (0, 4)), "at least one pixel"),
    ],
)
def test_to_rgb_when_it_has_no_known_range_then_refused(image, reason):
    with pytest.raises(ValueError, match=f"image: .*{reason}"):
        to_rgb(image)


def test_to_rgb_of_whole_numbers_of_16_bits_is_scaled():
    assert to_rgb(Image.new("I", (1, 1), 65535 // 2)).getpixel((0, 0)) == (127,) * 3


DEPTHS_OF = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by colour type
DEPTHS = [(kind, depth) for kind, depths in DEPTHS_OF.items() for depth in depths]


def numbers(kind, depth):
    """Random pixels [12, 9, channels], opaque ones."""
    values = np.random.default_rng(depth).integers(0, 2**depth, (12, 9, CHANNELS[kind]))
    if kind in (4, 6):
        values[..., -1] = 2**depth - 1
    return values


def eight_bits(values, depth):
    """As Pillow scales them: the upper byte of 16 bits."""
    return values >> 8 if depth == 16 else values * 255 // (2**depth - 1)


PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_png_of_every_depth_shows_its_numbers(kind, depth):
    values = numbers(kind, depth)
    palette = PALETTE[: 2**depth] if kind == 3 else None
    want = palette[values[..., 0]] if kind == 3 else eight_bits(values[..., : 3 if kind in (2, 6) else 1], depth)
    file = png(values, depth, kind, palette=b"" if palette is None else palette.tobytes())
    assert difference(read_picture(file), np.broadcast_to(want, (12, 9, 3))) == 0


@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind, depth in DEPTHS if kind in (0, 2)])
def test_png_with_a_transparent_colour_is_white_there_alone(kind, depth):
    values, most = numbers(kind, depth), 2**depth - 1
    colour = np.full(CHANNELS[kind], most // 3)
    values[3, 4] = colour
    values[5, 6] = colour
    values[7, 8] = np.where(np.arange(len(colour)) == 0, (colour + 1) % (most + 1), colour)  # nearly the same colour
    want = np.broadcast_to(eight_bits(values, depth), (12, 9, 3)).copy()
    want[(values == colour).all(2)] = 255
    assert difference(read_picture(png(values, depth, kind, transparent=colour.astype(">u2").tobytes())), want) == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_png_with_transparent_palette_entries_is_on_white(depth):
    values, count = numbers(3, depth), 2**depth
    alpha = np.random.default_rng(1).integers(0, 256, count)
    palette = PALETTE[:count].astype(int)
    want = palette * alpha[:, None] / 255 + 255 - alpha[:, None]
    file = png(values, depth, 3, PALETTE[:count].tobytes(), transparent=alpha.astype(np.uint8).tobytes())
    assert difference(read_picture(file), want.round().astype(int)[values[..., 0]]) <= 1


def test_sixteen_bit_ramp_is_not_cut_off():
    ramp, file = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (8, 1)), io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    assert np.asarray(read_picture(file.getvalue())).mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_of_every_mode_shows_the_same(mode):
    file = io.BytesIO()
    RGB.convert(mode).save(file, "JPEG", quality=95)
    assert difference(read_picture(file.getvalue()), RGB.convert(mode).convert("RGB")) < 12


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_of_every_mode_shows_the_same(mode):
    file = io.BytesIO()
    RGB.convert(mode).save(file, "WEBP", lossless=True, exact=True)
    assert difference(read_picture(file.getvalue()), RGB) == 0
