import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsr.client import InvalidRequestError, Video
from fsr.client.media import image_messages, read_picture
from fsr.client.requests import compress_request, generate_request
from fsr.v1 import types_pb2
from helpers.clips import write_clip

RATE, COUNT = 10, 20  # frames per second and frames of the video file


@pytest.mark.parametrize(("spread", "wire"), [("even", types_pb2.SPREAD_EVEN), ("free", types_pb2.SPREAD_FREE)])
@pytest.mark.parametrize(("budget", "kind"), [(8, "tokens"), (0.1, "keep_ratio"), ("auto", "auto")])
@pytest.mark.parametrize("build", [generate_request, compress_request])
def test_video_travels_as_its_frames_beside_a_picture(frames, build, budget, kind, spread, wire):
    request = build([b"picture", Video.from_folder(frames, 4.0)], "?", budget=budget, spread=spread)
    picture, video = request.images
    assert (picture.data, list(picture.frames)) == (b"picture", [])
    assert (video.data, list(video.frames), video.frames_per_second) == (b"", [b"\1", b"\t", b"\n"], 4.0)
    assert (request.budget.WhichOneof("kind"), request.budget.spread) == (kind, wire)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Video([]), "frames: is empty"),
        (lambda: Video("clip"), "frames: expected a list of frames; Video.from_file and Video.from_folder read"),
        (lambda: Video(np.zeros((2, 2), np.uint8)), "frames: expected a list of frames"),
        (lambda: Video([b"x"], "2"), "frames_per_second: 2 is not above 0"),
        (lambda: Video.from_file(__file__), "video: .*test_media.py is no readable video"),
        (lambda: Video.from_file(io.BytesIO(b"x")), "video: the open file is no readable video"),
        (lambda: Video.from_file(io.StringIO("x")), "video: the open file is no readable video"),
        (lambda: Video.from_file(b""), "video: the content is no readable video"),
        (lambda: Video.from_file(3), "video: int is no file; give a path"),
        (lambda: Video.from_file("/no/such/clip.mp4"), "video: cannot read /no/such/clip.mp4"),
        (lambda: Video.from_file(__file__, 0), "frames_per_second: 0 is not above 0"),
        (lambda: Video([b"x"], 0.0), "frames_per_second: 0.0 is not above 0"),
        (lambda: Video([b"x"], float("nan")), "frames_per_second: nan"),
        (lambda: Video.from_folder("/no/such/folder"), "video: cannot read /no/such/folder"),
    ],
)
def test_wrong_video_is_refused_with_its_argument(make, says):
    with pytest.raises(InvalidRequestError, match=says):
        make()


def level(frame):
    """The grey of a frame's middle, by which the frames of the clip differ."""
    image = Image.open(io.BytesIO(read_picture(frame))).convert("L")
    return image.getpixel((image.width // 2, image.height // 2))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of two seconds, whose frame number k is of grey 12 k, with a black left quarter."""
    pictures = [Image.new("RGB", (96, 48), (12 * k,) * 3) for k in range(COUNT)]
    for picture in pictures:
        picture.paste("black", (0, 0, 24, 48))
    return write_clip(tmp_path_factory.mktemp("videos") / "möd 1.mp4", pictures, RATE)


@pytest.mark.parametrize(
    ("rate", "numbers"),
    [
        (2, [0, 5, 10, 15]),
        (10, list(range(COUNT))),
        (3, [0, 3, 6, 10, 13, 16]),
        (0.1, [0]),
        (20, [k // 2 for k in range(2 * COUNT - 1)]),
    ],
)
def test_video_file_gives_the_frames_that_are_shown_at_its_times(clip, rate, numbers):
    video = Video.from_file(clip, rate)
    assert np.allclose([level(frame) for frame in video.frames], [12 * k for k in numbers], atol=5)
    assert video.frames_per_second == rate


def test_path_of_a_video_file_or_folder_is_a_video_of_two_frames_a_second(clip, frames):
    expected = image_messages([Video.from_file(clip), Video.from_folder(frames)])
    assert image_messages([clip, frames]) == image_messages([str(clip), str(frames)]) == expected
    assert [image.frames_per_second for image in expected] == [2, 2] and len(expected[0].frames) == 4
    with clip.open("rb") as opened:
        assert Video.from_file(opened) == Video.from_file(clip) == Video.from_file(clip.read_bytes())


def test_playlist_in_place_of_a_video_opens_no_other_file(clip, tmp_path):
    playlist = tmp_path / "playlist.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(InvalidRequestError, match=r"playlist.m3u8 (is no readable|holds no) video"):
        Video.from_file(playlist)


def test_video_file_of_a_phone_is_upright(clip, tmp_path):
    """Phones write the frames as the sensor lies, and how to turn them."""
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # of version 0
    one = 2**16
    for i, number in enumerate((0, one, 0, -one, 0, 0, 0, 0, 2**30)):  # turned clockwise by a quarter
        data[matrix + 4 * i : matrix + 4 * i + 4] = number.to_bytes(4, signed=True)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    image = Image.open(io.BytesIO(Video.from_file(turned).frames[-1])).convert("L")
    assert image.size == (48, 96) and image.getpixel((24, 5)) < 20 < image.getpixel((24, 90))


def test_video_file_whose_frames_exceed_a_request_is_refused(clip):
    with pytest.raises(InvalidRequestError, match=r"exceed a request after \d+ s; lower frames_per_second, or cut"):
        Video.from_file(clip, 1e6)


@pytest.mark.parametrize("missing", ["av", "PIL"])
def test_video_file_without_the_extra_names_it(clip, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidRequestError, match=r"pip install 'fsr-gateway\[video\]', or: mkdir frames && ffmpeg -i"):
        image_messages(clip)


def test_array_of_frames_is_a_video():
    frames = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    (video,) = image_messages(Video(frames, 1))
    assert list(video.frames) == [read_picture(frame) for frame in frames]


def test_wrong_frame_is_named_with_its_video():
    video = Video([b"x", Path("/no/such/frame")])
    for images, name in ((video, r"frames\[1\]"), ([b"x", video], r"images\[1\]\.frames\[1\]")):
        with pytest.raises(InvalidRequestError, match=f"^{name}: cannot read /no/such/frame"):
            image_messages(images)
    with pytest.raises(InvalidRequestError, match=r"^frames\[0\]: clip.mp4 is a video file; Video.from_file reads it"):
        image_messages(Video(["clip.mp4"]))
