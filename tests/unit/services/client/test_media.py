import pytest

from fsr.client import InvalidRequestError, Video
from fsr.client.requests import compress_request, generate_request
from fsr.v1 import types_pb2


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
        (lambda: Video("clip"), "frames: expected a list of frames"),
        (lambda: Video([b"x"], 0.0), "frames_per_second: 0.0 is not above 0"),
        (lambda: Video([b"x"], float("nan")), "frames_per_second: nan"),
        (lambda: Video.from_folder("/no/such/folder"), "video: cannot read /no/such/folder"),
    ],
)
def test_wrong_video_is_refused_with_its_argument(make, says):
    with pytest.raises(InvalidRequestError, match=says):
        make()
