"""Decoding JPEGs at a smaller size: off unless it is asked for, never below what the model scales pictures to."""

import io

import numpy as np
import pytest
from PIL import Image

from fsr.encoder.images.decode import decode_image
from fsr.encoder.images.scaled_jpeg import jpeg_side
from fsr.v1 import types_pb2
from fsr_core.pictures import PictureFile
from helpers import checkpoints
from helpers.benches import picture
from helpers.encoder_requests import answer, pipeline_of, request_of

BY_SIZE = ("internvl", "smolvlm", "idefics3")  # families whose grid of tiles depends on a picture's size


def smooth(size):
    return picture((7, 5)).resize(size, Image.Resampling.BICUBIC)


def jpeg(size, **options):
    out = io.BytesIO()
    smooth(size).save(out, "JPEG", quality=95, **options)
    return out.getvalue()


def decoded(data, side=None):
    return decode_image(data, "images[0].data", 10**7, jpeg_side=side)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_when_no_side_is_given_then_its_pixels_are_those_of_pillow(progressive):
    data = jpeg((161, 120), progressive=progressive)
    image, size = decoded(data)
    assert image.tobytes() == Image.open(io.BytesIO(data)).tobytes() and image.size == size == (161, 120)


@pytest.mark.parametrize(
    ("side", "size"),
    [
        (121, (160, 120)),
        (61, (160, 120)),
        (60, (80, 60)),
        (31, (80, 60)),
        (30, (40, 30)),
        (15, (20, 15)),
        (1, (20, 15)),
    ],
)
def test_jpeg_when_a_side_is_given_then_the_shorter_one_keeps_as_much(side, size):
    image, whole = decoded(jpeg((160, 120)), side)
    assert (image.size, whole) == (size, (160, 120))
    expected = np.asarray(smooth((160, 120)).resize(size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(image) - expected).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_picture_of_another_format_when_a_side_is_given_is_decoded_in_full(kind):
    out = io.BytesIO()
    smooth((161, 120)).save(out, kind, lossless=True)
    image, _ = decoded(out.getvalue(), 10)
    assert image.tobytes() == smooth((161, 120)).tobytes()


def test_jpeg_when_it_is_turned_then_its_size_is_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg((160, 120), exif=exif)
    image, size = decoded(data, 60)
    assert (image.size, size) == ((60, 80), (120, 160))
    assert PictureFile(data).size == (160, 120)


@pytest.mark.parametrize("name", [name for name in checkpoints.FAMILIES if name not in BY_SIZE])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 3)])
def test_answer_when_jpegs_are_scaled_then_tokens_and_regions_are_those_of_the_whole_picture(bench, name, shape):
    encoder = bench(name).encoder
    data = jpeg(tuple(8 * encoder.sufficient_side() // min(shape) * edge for edge in shape))
    request = request_of(types_pb2.Image(data=data), explain=True)
    options = {"max_image_pixels": 10**7}
    (whole,) = answer(pipeline_of(encoder, **options), request).images
    (scaled,) = answer(pipeline_of(encoder, scaled_jpeg=1, **options), request).images
    assert scaled.source_tokens == whole.source_tokens and scaled.source_newlines == whole.source_newlines
    assert scaled.features.data != whole.features.data  # it was decoded in another way
    for one, other in zip(scaled.explanation.views, whole.explanation.views, strict=True):
        assert (one.start, one.rows, one.columns) == (other.start, other.rows, other.columns)
        for edge in ("left", "top", "right", "bottom"):
            assert getattr(one.crop, edge) == pytest.approx(getattr(other.crop, edge), abs=1)


def test_answer_when_a_picture_is_too_small_to_be_scaled_is_the_same(bench):
    encoder = bench("llava").encoder
    request = request_of(types_pb2.Image(data=jpeg((70, 50))))
    one, other = (answer(pipeline_of(encoder, scaled_jpeg=times), request) for times in (None, 2))
    assert one.images == other.images


@pytest.mark.parametrize("name", BY_SIZE)
def test_option_when_pictures_are_prepared_by_their_size_is_refused(bench, name):
    encoder = bench(name).encoder
    assert jpeg_side(encoder, None) is None
    with pytest.raises(ValueError, match=r"^scaled-jpeg: how \w+ prepares a picture depends .*; leave it out$"):
        jpeg_side(encoder, 1.0)
