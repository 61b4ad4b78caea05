import base64

import pytest

from fsr.common.errors import InvalidRequest
from fsr.gateway.http.pictures.pictures import Pictures
from fsr.gateway.http.pictures.remote import RemotePictures
from fsr.gateway.http.schemas.requests import VideoPart
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from helpers.chat import data_uri

FIELD = "messages[0].content[1].video_url"
FRAMES = [b"\xff\xd8first", b"\xff\xd8second", b"\xff\xd8third"]


async def images(video_url, **options):
    settings = GatewaySettings(max_frames=4, max_image_bytes=1000, **options)
    part = VideoPart(type="video_url", video_url=video_url)
    return await Pictures(settings, RemotePictures(settings)).images([(part, FIELD)], Deadline(60))


@pytest.mark.parametrize(
    "video_url",
    [
        {"frames": [data_uri(frame, "image/jpeg") for frame in FRAMES]},
        {"url": "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in FRAMES)},
    ],
    ids=["a list", "as vLLM takes them"],
)
async def test_video_is_its_frames_in_order(video_url):
    (image,) = await images(video_url)
    assert list(image.frames) == FRAMES and image.frames_per_second == 0 and not image.data
    (image,) = await images(video_url | {"fps": 0.5})
    assert image.frames_per_second == 0.5


@pytest.mark.parametrize(
    ("video_url", "says"),
    [
        ({}, r"video_url: takes either frames or url; send its frames"),
        ({"frames": ["data:image/png;base64,AA=="], "url": "data:,"}, r"video_url: takes either frames or url"),
        ({"frames": []}, r"video_url.frames: is empty; send at least one"),
        ({"frames": ["data:image/png;base64,AA=="] * 5}, r"video_url: its 5 frames are more than 4; send every second"),
        ({"frames": ["data:image/png;base64,AA==", "AA=="]}, r"video_url.frames\[1\]: is no data URI; write"),
        ({"frames": ["https://example.org/1.jpg"]}, r"video_url.frames\[0\]: is no data URI; write"),
        ({"frames": [data_uri(b"x" * 2000)]}, r"video_url.frames\[0\]: 2\d+ bytes exceed 1000; scale"),
        ({"url": "data:video/mp4;base64,AAAA"}, r"url: 'video/mp4' is a video file, which is not decoded here; send"),
        ({"url": "data:image/gif;base64,AAAA"}, r"url: 'image/gif' is a video file, which is not decoded here; send"),
        (
            {"url": "https://example.org/a.mp4"},
            r"url: is no data URI, and no video is fetched by URL here; send its fr",
        ),
        ({"url": "data:video/jpeg;base64,AA==,@"}, r"video_url.frames\[1\]: is no base64"),
        ({"url": "data:video/jpeg,AA=="}, r"video_url.frames\[0\]: is a data URI without base64"),
    ],
)
async def test_video_that_cannot_be_read_is_refused_with_a_remedy(video_url, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        await images(video_url, http_image_hosts=["*"])
    assert str(caught.value).startswith(FIELD) and "; " in str(caught.value)
